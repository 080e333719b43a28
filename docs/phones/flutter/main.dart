import 'package:firebase_core/firebase_core.dart';
import 'package:firebase_messaging/firebase_messaging.dart';
import 'package:flutter/material.dart';
import 'package:supabase_flutter/supabase_flutter.dart';

import 'firebase_options.dart'; // written by flutterfire configure
import 'push_service.dart';
import 'push_store.dart';
import 'telemetry.dart';

late final PushService push;
late final Telemetry telemetry;
final messenger = GlobalKey<ScaffoldMessengerState>();

Future<void> main() async {
  WidgetsFlutterBinding.ensureInitialized();
  await Firebase.initializeApp(options: DefaultFirebaseOptions.currentPlatform);
  FirebaseMessaging.onBackgroundMessage(onBackgroundPush);
  await Supabase.initialize(url: supabaseUrl, publishableKey: supabaseKey);
  telemetry = Telemetry(Supabase.instance.client);
  push = PushService(
    Supabase.instance.client,
    onPush: (message) => messenger.currentState?.showSnackBar(
      SnackBar(content: Text(message.notification?.title ?? '${message.data['title']}')),
    ),
    onTap: (message) => telemetry.log('push', 'tapped', {'link': message.data['link']}),
  );
  push.start();
  runApp(MaterialApp(scaffoldMessengerKey: messenger, home: const Settings()));
}

class Settings extends StatelessWidget {
  const Settings({super.key});

  @override
  Widget build(BuildContext context) => Scaffold(
        body: Column(
          mainAxisAlignment: MainAxisAlignment.center,
          children: [
            TextButton(onPressed: push.enable, child: const Text('Tell me when my order is ready')),
            TextButton(onPressed: _signOut, child: const Text('Sign out')),
          ],
        ),
      );

  Future<void> _signOut() async {
    await telemetry.flush();
    await push.signOut();
  }
}
