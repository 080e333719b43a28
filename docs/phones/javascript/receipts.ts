// Receipts, from pages and from the service worker.
import type { SupabaseClient } from '@supabase/supabase-js';
import { supabaseKey, supabaseUrl } from './config';
import { bound, forget, store, type Receipt, type Session } from './store';

const MOST_RECEIPTS = 500; // of those that wait, and in one call: the database refuses more as a whole

/**
 * Keeps the receipt and, if the access token is still good, sends it. What is not sent waits for the next page.
 *
 * A service worker must never refresh the session: a refresh token works once, and the page, which would use it second,
 * would be signed out.
 */
export async function record(pushId: string | undefined, status: Receipt['status']): Promise<void> {
  const db = await store();
  const [session, device] = await Promise.all([db.get('session', 'now'), db.get('device', 'now')]);
  if (!pushId || !session || !device) return;
  const receipt: Receipt = { push_id: pushId, device_token: device, status, at: new Date().toISOString() };
  const key = await db.add('receipts', { ...receipt, user_id: session.userId });
  await bound('receipts', MOST_RECEIPTS);
  const isGood = session.expiresAt > Date.now() / 1000 + 10;
  if (isGood && (await send(session, receipt))) await forget('receipts', [key]);
}

/** Whether the receipt is recorded, or refused for good. */
async function send(session: Session, receipt: Receipt): Promise<boolean> {
  try {
    const answer = await fetch(`${supabaseUrl}/rest/v1/rpc/record_delivery_receipt`, {
      method: 'POST',
      headers: {
        apikey: supabaseKey,
        Authorization: `Bearer ${session.accessToken}`,
        'Content-Type': 'application/json',
      },
      body: JSON.stringify({
        p_push_id: receipt.push_id,
        p_device_token: receipt.device_token,
        p_status: receipt.status,
        p_at: receipt.at,
      }),
      signal: AbortSignal.timeout(10_000),
    });
    return answer.ok || answer.status === 400 || answer.status === 403;
  } catch {
    return false; // no network
  }
}

/** For pages: sends what waits of this user, up to 500 receipts, in one call. */
export async function flushReceipts(supabase: SupabaseClient, userId: string): Promise<void> {
  const { store: kept } = (await store()).transaction('receipts');
  const [keys, waiting] = await Promise.all([
    kept.index('user_id').getAllKeys(userId, MOST_RECEIPTS),
    kept.index('user_id').getAll(userId, MOST_RECEIPTS),
  ]);
  if (waiting.length === 0) return;
  const receipts = waiting.map(({ push_id, device_token, status, at }) => ({ push_id, device_token, status, at }));
  const { error } = await supabase.rpc('record_delivery_receipts', { p_receipts: receipts });
  if (!error) await forget('receipts', keys); // recorded, recorded before, or refused for good
}
