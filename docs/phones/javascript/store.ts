// What the pages and the service worker share. A service worker has no localStorage, so it is in IndexedDB.
import { openDB, type DBSchema, type IDBPDatabase } from 'idb';

/** The signed-in user, as the pages last saw it. */
export interface Session {
  userId: string;
  accessToken: string;
  /** Seconds since 1970. */
  expiresAt: number;
}

export interface Receipt {
  push_id: string;
  device_token: string;
  status: 'delivered' | 'opened' | 'clicked';
  at: string;
}

export interface TelemetryRecord {
  type: string;
  message: string;
  meta?: Record<string, unknown>;
  timestamp: string;
}

/** Records that are sent together, and keep this id until they are stored. */
export interface Batch {
  id: string;
  user_id: string;
  records: TelemetryRecord[];
}

interface Schema extends DBSchema {
  session: { key: 'now'; value: Session };
  device: { key: 'now'; value: string };
  shown: { key: number; value: { push_id: string }; indexes: { push_id: string } };
  receipts: { key: number; value: Receipt & { user_id: string }; indexes: { user_id: string } };
  batches: { key: number; value: Batch; indexes: { user_id: string } };
}

let opened: Promise<IDBPDatabase<Schema>> | undefined;

/** A failure is not kept: the next call tries again. */
export async function store(): Promise<IDBPDatabase<Schema>> {
  if (opened) return opened;
  opened = openDB<Schema>('push-listener', 1, {
    terminated: () => (opened = undefined), // the browser has closed it
    upgrade(db) {
      db.createObjectStore('session');
      db.createObjectStore('device');
      db.createObjectStore('shown', { autoIncrement: true }).createIndex('push_id', 'push_id');
      db.createObjectStore('receipts', { autoIncrement: true }).createIndex('user_id', 'user_id');
      db.createObjectStore('batches', { autoIncrement: true }).createIndex('user_id', 'user_id');
    },
  });
  opened.catch(() => (opened = undefined));
  return opened;
}

/** Deletes the oldest entries beyond the last `most`. */
export async function bound(name: 'shown' | 'receipts' | 'batches', most: number): Promise<void> {
  const keys = await (await store()).getAllKeys(name);
  await forget(name, keys.slice(0, Math.max(0, keys.length - most)));
}

export async function forget(name: 'shown' | 'receipts' | 'batches', keys: number[]): Promise<void> {
  const tx = (await store()).transaction(name, 'readwrite');
  await Promise.all([...keys.map((key) => tx.store.delete(key)), tx.done]);
}

/** Whether this push has not been shown yet. FCM and the listener may deliver a push more than once. */
export async function isFirst(pushId: string): Promise<boolean> {
  const tx = (await store()).transaction('shown', 'readwrite');
  const seen = await tx.store.index('push_id').getKey(pushId);
  if (seen === undefined) await tx.store.add({ push_id: pushId });
  await tx.done;
  if (seen === undefined) await bound('shown', 200);
  return seen === undefined;
}
