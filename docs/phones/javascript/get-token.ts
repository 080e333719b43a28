// For a project that stays with registration tokens, in the place of push.ts's register().
import { deleteToken, getToken, type Messaging } from 'firebase/messaging';
import type { SupabaseClient } from '@supabase/supabase-js';
import { vapidKey } from './config';
import { store } from './store';

/** After sign-in and at every start: no event says that a token has changed, so it is compared. */
export async function registerToken(
  supabase: SupabaseClient,
  messaging: Messaging,
  worker: ServiceWorkerRegistration,
): Promise<void> {
  const token = await getToken(messaging, { vapidKey, serviceWorkerRegistration: worker });
  const db = await store();
  const before = await db.get('device', 'now');
  await supabase.rpc('register_device', { p_token: token, p_platform: 'web' });
  if (before && before !== token) await supabase.rpc('unregister_device', { p_token: before });
  await db.put('device', token, 'now');
}

/** Before auth.signOut(), in the place of unregister(). */
export async function unregisterToken(supabase: SupabaseClient, messaging: Messaging): Promise<void> {
  try {
    const token = await (await store()).get('device', 'now');
    if (token) await supabase.rpc('unregister_device', { p_token: token });
  } finally {
    await deleteToken(messaging).catch(() => undefined); // although the browser may have lost its database
  }
}
