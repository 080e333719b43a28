// On every page.
import { createClient } from '@supabase/supabase-js';
import { supabaseKey, supabaseUrl } from './config';
import { Push } from './push';
import { Telemetry } from './telemetry';

const supabase = createClient(supabaseUrl, supabaseKey);
const telemetry = new Telemetry(supabase);
const push = await Push.start(supabase, (payload) => {
  const line = document.createElement('li');
  line.textContent = payload.notification?.title ?? payload.data?.title ?? '';
  document.querySelector('#pushes')?.append(line);
});

document.querySelector('#enable')?.addEventListener('click', async () => {
  telemetry.log('push', (await push?.enable()) ? 'allowed' : 'refused');
});
document.querySelector('#sign-out')?.addEventListener('click', async () => {
  await telemetry.flush();
  await (push ? push.signOut() : supabase.auth.signOut({ scope: 'local' }));
});
