// What belongs to your projects. None of it is a secret.
export const supabaseUrl = 'https://YOUR-PROJECT.supabase.co';
export const supabaseKey = 'YOUR-PUBLISHABLE-KEY';
export const vapidKey = 'YOUR-VAPID-KEY'; // Firebase console: Project settings, Cloud Messaging, Web Push certificates
export const firebaseConfig = {
  apiKey: 'YOUR-API-KEY',
  appId: 'YOUR-APP-ID',
  messagingSenderId: 'YOUR-SENDER-ID',
  projectId: 'YOUR-PROJECT',
};
