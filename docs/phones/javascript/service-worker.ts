// Bundle it to /service-worker.js, at the root of the site.
import { initializeApp } from 'firebase/app';
import { getMessaging, onBackgroundMessage } from 'firebase/messaging/sw';
import { firebaseConfig } from './config';
import { record } from './receipts';
import { isFirst } from './store';

declare const self: ServiceWorkerGlobalScope;

// Before getMessaging(): the SDK's own listener, which opens the link of a push with a title, stops the event.
self.addEventListener('notificationclick', (event) => {
  const message = event.notification.data?.FCM_MSG; // what the SDK has shown
  const data: Record<string, string> = (message ? message.data : event.notification.data) ?? {};
  const work: Promise<unknown>[] = [record(data.push_id, event.action ? 'clicked' : 'opened')];
  if (!message) {
    event.notification.close();
    work.push(self.clients.openWindow(data.link ?? '/'));
  }
  event.waitUntil(Promise.all(work));
});

// The browser ends the worker when this promise is settled, so it waits for everything.
onBackgroundMessage(getMessaging(initializeApp(firebaseConfig)), async (payload) => {
  const data = payload.data ?? {};
  // The SDK has shown a push with a title. A data-only push must show something: browsers take the permission from
  // sites that stay silent. A copy has the same tag, and takes the place of the first without a sound.
  if (!payload.notification) {
    const { title = 'Something new', body, push_id: tag } = data;
    await self.registration.showNotification(title, { body, tag, data });
  }
  await record(data.push_id, 'delivered');
  if (data.push_id) await isFirst(data.push_id); // so that no page shows a copy
});
