// Registers this phone, and handles pushes and taps while the app runs.
import 'dart:async';
import 'dart:io';
import 'dart:ui' show DartPluginRegistrant;

import 'package:firebase_messaging/firebase_messaging.dart';
import 'package:flutter/widgets.dart' show WidgetsBinding;
import 'package:supabase_flutter/supabase_flutter.dart';

import 'push_store.dart';

/// Runs without the app, on Android in an isolate of its own. Do not call `Supabase.initialize` here: it would refresh
/// the session.
@pragma('vm:entry-point')
Future<void> onBackgroundPush(RemoteMessage message) async {
  DartPluginRegistrant.ensureInitialized();
  await recordReceipt(message.data['push_id'] as String?, 'delivered');
}

class PushService {
  PushService(this._supabase, {required this.onPush, required this.onTap});

  /// A push that has come while the app is open, once. Android shows nothing then.
  final void Function(RemoteMessage) onPush;

  /// The user has tapped on a push. Not before the first frame, so that there is a navigator.
  final void Function(RemoteMessage) onTap;

  final SupabaseClient _supabase;
  final _messaging = FirebaseMessaging.instance;
  String? _registeredFor;
  var _isLeaving = false;

  /// Call it once, before `runApp`, before anybody is signed in too. It waits for nothing.
  void start() {
    FirebaseMessaging.onMessage.listen(_received);
    FirebaseMessaging.onMessageOpenedApp.listen(_tapped);
    _messaging.onTokenRefresh.listen(_register);
    _supabase.auth.onAuthStateChange.listen((state) => _signedIn(state.session), onError: (Object _) {});
    unawaited(_startedByTap());
  }

  Future<void> _startedByTap() async {
    final message = await _messaging.getInitialMessage();
    if (message == null) return;
    await WidgetsBinding.instance.endOfFrame;
    await _tapped(message);
  }

  /// Asks for permission, when the user understands why, and registers the phone. Whether the user has allowed pushes.
  Future<bool> enable() async {
    final isAllowed = _allows(await _messaging.requestPermission());
    if (isAllowed) await _registerNow();
    return isAllowed;
  }

  /// In this order: without a session nobody can unregister the device. False if neither the database nor FCM could be
  /// told: this phone may still get pushes of the user. The user is signed out in any case.
  Future<bool> signOut() async {
    _isLeaving = true; // FCM may give a new token as soon as the old one is deleted
    try {
      return await _leave();
    } finally {
      _registeredFor = null;
      try {
        await _supabase.auth.signOut(scope: SignOutScope.local);
      } on Exception {
        // No network: the phone has forgotten the session, and the server has not heard of it.
      } finally {
        _isLeaving = false;
      }
    }
  }

  /// Tells the database and FCM. One of the two is enough: FCM's next answer for this device would remove it, too.
  Future<bool> _leave() async {
    var isGone = false;
    try {
      final device = await PushStore.device;
      await flushReceipts(_supabase);
      if (device != null) await _supabase.rpc<dynamic>('unregister_device', params: {'p_token': device});
      isGone = true;
    } on Exception {
      // No network, or the phone cannot read its store. FCM may still take the device away.
    }
    try {
      await _messaging.deleteToken();
      isGone = true;
    } on Exception {
      // No network, or no APNs token.
    }
    try {
      await PushStore.keepDevice(null);
      await PushStore.keepSession(null);
    } on Exception {
      // The next sign-in overwrites both.
    }
    return isGone;
  }

  /// At every start, after sign-in, whenever the session is refreshed, and when it ends.
  Future<void> _signedIn(Session? session) async {
    await PushStore.keepSession(session);
    if (session == null) {
      _registeredFor = null;
    } else if (_registeredFor != session.user.id) {
      _registeredFor = session.user.id;
      if (_allows(await _messaging.getNotificationSettings())) await _registerNow();
      await flushReceipts(_supabase);
    }
  }

  Future<void> _registerNow() async {
    try {
      if (await _token() case final token?) await _register(token);
    } on Exception {
      _registeredFor = null; // again when the session is refreshed, and at the next start
    }
  }

  /// Apple's token comes first, within seconds; FCM has none without it.
  Future<String?> _token() async {
    if (Platform.isIOS) {
      for (var tries = 0; await _messaging.getAPNSToken() == null; tries++) {
        if (tries == 10) return null; // at the next start
        await Future<void>.delayed(const Duration(seconds: 1));
      }
    }
    return _messaging.getToken();
  }

  /// Also when FCM gives a new token. The event may be missed, so each start compares.
  Future<void> _register(String token) async {
    if (_isLeaving) return;
    final before = await PushStore.device;
    await PushStore.keepDevice(token);
    if (_supabase.auth.currentSession == null) return; // _signedIn comes back to it
    try {
      await _supabase.rpc<dynamic>('register_device', params: {
        'p_token': token,
        'p_platform': Platform.isIOS ? 'ios' : 'android',
      });
      if (before != null && before != token) {
        await _supabase.rpc<dynamic>('unregister_device', params: {'p_token': before});
      }
    } on Exception {
      _registeredFor = null;
    }
  }

  Future<void> _received(RemoteMessage message) async {
    final pushId = message.data['push_id'] as String?;
    if (pushId != null && !await _isFirst(pushId)) return;
    onPush(message);
    await recordReceipt(pushId, 'delivered');
  }

  /// Without a store a push is better shown twice than never.
  Future<bool> _isFirst(String pushId) async {
    try {
      return await PushStore.isFirst(pushId);
    } on Exception {
      return true;
    }
  }

  Future<void> _tapped(RemoteMessage message) async {
    onTap(message);
    await recordReceipt(message.data['push_id'] as String?, 'opened');
  }

  bool _allows(NotificationSettings settings) => switch (settings.authorizationStatus) {
        AuthorizationStatus.authorized || AuthorizationStatus.provisional => true,
        _ => false,
      };
}
