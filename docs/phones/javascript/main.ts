// On every page.
import { createClient } from '@supabase/supabase-js';
import { supabaseKey, supabaseUrl } from './config';
import { Push } from './push';
import { Telemetry } from './telemetry';

const supabase = createClient(supabaseUrl, supabaseKey);
const telemetry = new Telemetry(supabase);
const starting = Push.start(supabase, (payload) => {
  const line = document.createElement('li');
  line.textContent = payload.notification?.title ?? payload.data?.title ?? '';
  document.querySelector('#pushes')?.append(line);
}).catch((error) => {
  console.warn('No pushes on this page', error);
  return null;
});

// Nothing is waited for before this: the buttons work although pushes may not.
document.querySelector('#enable')?.addEventListener('click', async () => {
  try {
    const push = await starting;
    telemetry.log('push', (await push?.enable()) ? 'allowed' : 'refused');
  } catch (error) {
    telemetry.log('push', 'failed', { error: String(error) }); // the next click tries again
  }
});
document.querySelector('#sign-out')?.addEventListener('click', async () => {
  await telemetry.flush();
  const push = await starting;
  await (push ? push.signOut() : supabase.auth.signOut({ scope: 'local' }));
});
