// Registers this browser, and handles pushes while a page is visible.
import { initializeApp } from 'firebase/app';
import {
  getMessaging,
  isSupported,
  onMessage,
  onRegistered,
  onUnregistered,
  register,
  unregister,
  type MessagePayload,
  type Messaging,
} from 'firebase/messaging';
import type { Session as AuthSession, SupabaseClient } from '@supabase/supabase-js';
import { firebaseConfig, vapidKey } from './config';
import { flushReceipts, record } from './receipts';
import { isFirst, store } from './store';

export class Push {
  private registeredFor: string | undefined;
  private isLeaving = false;

  private constructor(
    private readonly supabase: SupabaseClient,
    private readonly messaging: Messaging,
    private readonly worker: Promise<ServiceWorkerRegistration>,
  ) {}

  /**
   * Call it once on every page, before anybody is signed in too. Null where the browser has no push.
   * `onPush` gets each push that arrives while the page is visible, once: the browser shows nothing then.
   */
  static async start(supabase: SupabaseClient, onPush: (payload: MessagePayload) => void): Promise<Push | null> {
    if (!(await isSupported())) return null;
    // Whether this works or not, the user can sign out: only enable() waits for it.
    const worker = navigator.serviceWorker.register('/service-worker.js');
    worker.catch((error) => console.warn('This page has no service worker', error));
    const messaging = getMessaging(initializeApp(firebaseConfig));
    const push = new Push(supabase, messaging, worker);
    onRegistered(messaging, (fid) => void push.registered(fid));
    onUnregistered(messaging, (fid) => void push.unregistered(fid));
    onMessage(messaging, async (payload) => {
      const pushId = payload.data?.push_id;
      // A copy, or another tab has it. Without a store a push is better shown twice than never.
      if (pushId && !(await isFirst(pushId).catch(() => true))) return;
      onPush(payload);
      await record(pushId, 'delivered');
    });
    // setTimeout leaves the callback: calls of supabase-js from inside it may wait for each other for ever.
    supabase.auth.onAuthStateChange((_event, session) => void setTimeout(() => void push.signedIn(session)));
    return push;
  }

  /**
   * Call it in the handler of a click: browsers ask for permission only then. Whether the user has allowed pushes.
   * Throws if there is no service worker, or FCM does not answer.
   */
  async enable(): Promise<boolean> {
    if ((await Notification.requestPermission()) !== 'granted') return false;
    await register(this.messaging, { vapidKey, serviceWorkerRegistration: await this.worker });
    return true;
  }

  /**
   * In this order: without a session nobody can unregister the device. False if neither the database nor FCM could be
   * told: this browser may still get pushes of the user. The user is signed out in any case.
   */
  async signOut(): Promise<boolean> {
    this.isLeaving = true;
    try {
      return await this.leave();
    } finally {
      this.registeredFor = undefined;
      await this.supabase.auth.signOut({ scope: 'local' }).finally(() => (this.isLeaving = false));
    }
  }

  /** Tells the database and FCM. One of the two is enough: FCM's next answer for this device would remove it, too. */
  private async leave(): Promise<boolean> {
    // A browser may lose its database. Then this code does not know whether there is a device, and tells FCM anyway.
    const device = await store().then((db) => db.get('device', 'now')).catch(() => null);
    const { data } = await this.supabase.auth.getSession();
    let isGone = device === undefined;
    if (data.session) await flushReceipts(this.supabase, data.session.user.id).catch(() => undefined);
    if (device && data.session) {
      const { error } = await this.supabase.rpc('unregister_device', { p_token: device });
      isGone = !error;
    }
    if (device !== undefined) isGone = (await unregister(this.messaging).then(() => true, () => false)) || isGone;
    await this.forgetUser().catch(() => undefined); // the browser has lost its database
    return isGone;
  }

  private async forgetUser(): Promise<void> {
    const db = await store();
    await Promise.all([db.clear('device'), db.clear('session')]);
  }

  /** At every start, after sign-in, whenever the session is refreshed, and on sign-out in any tab. */
  private async signedIn(session: AuthSession | null): Promise<void> {
    const db = await store();
    if (!session) {
      this.registeredFor = undefined;
      await db.clear('session');
      return;
    }
    const userId = session.user.id;
    await db.put('session', { userId, accessToken: session.access_token, expiresAt: session.expires_at ?? 0 }, 'now');
    if (this.registeredFor === userId) return;
    this.registeredFor = userId;
    if (Notification.permission === 'granted') await this.enable().catch((error) => this.later(error));
    await flushReceipts(this.supabase, userId);
  }

  /** The SDK calls it for each register(), and when the id changes. */
  private async registered(fid: string): Promise<void> {
    const db = await store();
    const before = await db.get('device', 'now');
    await db.put('device', fid, 'now');
    const { data } = await this.supabase.auth.getSession();
    if (!data.session) return; // signedIn() comes back to it
    const { error } = await this.supabase.rpc('register_device', { p_token: fid, p_platform: 'web' });
    if (error) return this.later(error);
    if (before && before !== fid) await this.supabase.rpc('unregister_device', { p_token: before });
  }

  /** Tries again when the session is refreshed, and at the next start. */
  private later(error: unknown): void {
    this.registeredFor = undefined;
    console.warn('This browser is not registered for pushes yet', error);
  }

  /** The SDK calls it for unregister(), and when the browser takes the subscription away. */
  private async unregistered(fid: string): Promise<void> {
    if (this.isLeaving) return; // signOut() has done it
    const { data } = await this.supabase.auth.getSession();
    if (data.session) await this.supabase.rpc('unregister_device', { p_token: fid });
  }
}
