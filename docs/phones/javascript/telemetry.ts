// Telemetry in batches. A batch keeps its id through retries and restarts, so it is never stored twice.
import type { SupabaseClient } from '@supabase/supabase-js';
import { bound, forget, store, type Batch, type TelemetryRecord } from './store';

const MOST_RECORDS = 100;
const MOST_CHARACTERS = 500_000; // of JSON; the database takes 2 MiB
const MOST_BATCHES = 100;
const EVERY_MS = 10_000;

export class Telemetry {
  /** Records that are no JSON, that this browser or the database will not take, or for which there was no room. */
  dropped = 0;
  private records: TelemetryRecord[] = [];
  private characters = 0;
  private userId: string | undefined;
  private chain: Promise<void> = Promise.resolve();

  constructor(private readonly supabase: SupabaseClient) {
    supabase.auth.onAuthStateChange((_event, session) => {
      if (session?.user.id !== this.userId) void this.freeze();
      this.userId = session?.user.id;
    });
    setInterval(() => void this.flush(), EVERY_MS);
    document.addEventListener('visibilitychange', () => document.hidden && void this.flush());
  }

  /** Never waits and never throws. False if nobody is signed in (telemetry belongs to a user) or `meta` is no JSON. */
  log(type: string, message = '', meta?: Record<string, unknown>): boolean {
    if (!this.userId) return false;
    const record: TelemetryRecord = { type, message, timestamp: new Date().toISOString(), ...(meta && { meta }) };
    let text: string;
    try {
      text = JSON.stringify(record);
    } catch {
      this.dropped += 1; // a cycle, a bigint
      return false;
    }
    if (this.characters + text.length > MOST_CHARACTERS) void this.flush();
    // The copy is plain: IndexedDB refuses functions and proxies, and with one of them the whole batch.
    this.records.push(JSON.parse(text));
    this.characters += text.length;
    if (this.records.length >= MOST_RECORDS) void this.flush();
    return true;
  }

  /** Sends what waits, oldest first, and stops at the first batch that gets no answer. One at a time. */
  flush(): Promise<void> {
    const frozen = this.freeze();
    this.chain = this.chain.then(() => frozen).then(() => this.sendAll()).catch(() => undefined);
    return this.chain;
  }

  /** Makes a batch of the records in memory, before anything is sent: from here on a restart loses nothing. */
  private async freeze(): Promise<void> {
    const [records, userId] = [this.records, this.userId];
    [this.records, this.characters] = [[], 0];
    if (records.length === 0 || !userId) return;
    try {
      const db = await store();
      await db.add('batches', { id: crypto.randomUUID(), user_id: userId, records });
    } catch {
      this.dropped += records.length; // the browser has no room, or has lost its database
      return;
    }
    await this.makeRoom();
  }

  private async makeRoom(): Promise<void> {
    const db = await store();
    const [oldest] = (await db.count('batches')) > MOST_BATCHES ? await db.getAll('batches', null, 1) : [];
    this.dropped += oldest?.records.length ?? 0;
    await bound('batches', MOST_BATCHES);
  }

  private async sendAll(): Promise<void> {
    const db = await store();
    for (;;) {
      const userId = this.userId;
      if (!userId) return;
      const key = await db.getKeyFromIndex('batches', 'user_id', userId);
      const batch = key === undefined ? undefined : await db.get('batches', key);
      if (key === undefined || !batch) return;
      const { data, error, status } = await this.supabase.rpc('flush_telemetry', {
        p_payloads: batch.records,
        p_batch_id: batch.id,
      });
      if (error && status !== 400 && status !== 413) return; // no answer, no session, or too much: later, with this id
      if (error && batch.records.length > 1) {
        await this.halve(key, batch);
      } else {
        this.dropped += error ? 1 : (data as { rejected: unknown[] }).rejected.length;
        await forget('batches', [key]);
      }
    }
  }

  /** The database has refused the whole batch: one half of it may be good. Of several tabs only one halves it. */
  private async halve(key: number, batch: Batch): Promise<void> {
    const half = Math.ceil(batch.records.length / 2);
    const tx = (await store()).transaction('batches', 'readwrite');
    if (await tx.store.get(key)) {
      await tx.store.delete(key);
      for (const records of [batch.records.slice(0, half), batch.records.slice(half)]) {
        await tx.store.add({ id: crypto.randomUUID(), user_id: batch.user_id, records });
      }
    }
    await tx.done;
  }
}
