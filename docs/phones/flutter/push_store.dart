// What the app, the background isolate and (on iOS) the notification service extension share, and receipts.
import 'dart:convert';
import 'dart:io';

import 'package:http/http.dart' as http;
import 'package:shared_preferences/shared_preferences.dart';
import 'package:shared_preferences_foundation/shared_preferences_foundation.dart';
import 'package:supabase_flutter/supabase_flutter.dart';

const supabaseUrl = 'https://YOUR-PROJECT.supabase.co';
const supabaseKey = 'YOUR-PUBLISHABLE-KEY';
const appGroup = 'group.com.example.app'; // of the app and of the extension, in Xcode

/// Without a cache: each isolate sees what the other has written.
final _prefs = Platform.isIOS
    ? SharedPreferencesAsync(options: SharedPreferencesAsyncFoundationOptions(suiteName: appGroup))
    : SharedPreferencesAsync();

abstract final class PushStore {
  static const _session = 'push.session';
  static const _device = 'push.device';
  static const _shown = 'push.shown';

  static Future<String?> get device => _prefs.getString(_device);

  static Future<void> keepDevice(String? token) =>
      token == null ? _prefs.remove(_device) : _prefs.setString(_device, token);

  /// For code that has no client of Supabase: the access token alone, never the refresh token.
  static Future<void> keepSession(Session? session) => session == null
      ? _prefs.remove(_session)
      : _prefs.setString(
          _session,
          jsonEncode({
            'url': supabaseUrl,
            'key': supabaseKey,
            'user_id': session.user.id,
            'access_token': session.accessToken,
            'expires_at': session.expiresAt ?? 0, // seconds since 1970
          }),
        );

  static Future<Map<String, dynamic>?> get session async {
    final text = await _prefs.getString(_session);
    return text == null ? null : jsonDecode(text) as Map<String, dynamic>;
  }

  /// Whether this push is new: FCM and the listener may deliver it more than once. Remembers the last 200.
  static Future<bool> isFirst(String pushId) async {
    final shown = await _prefs.getStringList(_shown) ?? [];
    if (shown.contains(pushId)) return false;
    final all = [...shown, pushId];
    await _prefs.setStringList(_shown, all.sublist(all.length > 200 ? all.length - 200 : 0));
    return true;
  }

  /// Each entry has a key of its own, so that two isolates do not overwrite each other's. Keys sort by time.
  static Future<void> add(String key, Map<String, Object?> value, {required String queue, required int most}) async {
    await _prefs.setString(key, jsonEncode(value));
    final keys = await _keys(queue);
    if (keys.length > most) await remove(keys.sublist(0, keys.length - most));
  }

  /// What waits in a queue for this user, oldest first.
  static Future<Map<String, Map<String, dynamic>>> waiting(String queue, String userId) async {
    final keys = await _keys(queue);
    if (keys.isEmpty) return {};
    final all = await _prefs.getAll(allowList: keys.toSet());
    return {
      for (final key in keys)
        if (all[key] case final String text)
          if (jsonDecode(text) case final Map<String, dynamic> value when value['user_id'] == userId) key: value,
    };
  }

  static Future<void> remove(Iterable<String> keys) async {
    for (final key in keys) {
      await _prefs.remove(key);
    }
  }

  static Future<List<String>> _keys(String queue) async =>
      (await _prefs.getKeys()).where((key) => key.startsWith(queue)).toList()..sort();
}

const _receipts = 'push.receipt.';
const _mostReceipts = 500; // of those that wait, and in one call: the database refuses more as a whole

/// Keeps the receipt and, if the access token is still good, sends it. What is not sent waits for [flushReceipts].
///
/// Works in every isolate. It never refreshes the session: a refresh token works once, and the app, which would use it
/// second, would be signed out.
Future<void> recordReceipt(String? pushId, String status) async {
  final session = await PushStore.session;
  final device = await PushStore.device;
  if (pushId == null || session == null || device == null) return;
  final at = DateTime.now().toUtc().toIso8601String();
  final key = '$_receipts$at.$pushId.$status';
  await PushStore.add(
    key,
    {'push_id': pushId, 'device_token': device, 'status': status, 'at': at, 'user_id': session['user_id']},
    queue: _receipts,
    most: _mostReceipts,
  );
  final now = DateTime.now().millisecondsSinceEpoch ~/ 1000;
  if ((session['expires_at'] as int) < now + 10) return;
  try {
    final answer = await http
        .post(
          Uri.parse('${session['url']}/rest/v1/rpc/record_delivery_receipt'),
          headers: {
            'apikey': session['key'] as String,
            'Authorization': 'Bearer ${session['access_token']}',
            'Content-Type': 'application/json',
          },
          body: jsonEncode({'p_push_id': pushId, 'p_device_token': device, 'p_status': status, 'p_at': at}),
        )
        .timeout(const Duration(seconds: 10));
    // 400 and 403: refused for good.
    if (answer.statusCode < 300 || answer.statusCode == 400 || answer.statusCode == 403) {
      await PushStore.remove([key]);
    }
  } on Exception {
    return; // no network
  }
}

/// In the app, with a session: sends what waits of this user, up to 500 receipts in one call.
Future<void> flushReceipts(SupabaseClient supabase) async {
  final userId = supabase.auth.currentUser?.id;
  if (userId == null) return;
  final waiting = (await PushStore.waiting(_receipts, userId)).entries.take(_mostReceipts).toList();
  if (waiting.isEmpty) return;
  try {
    await supabase.rpc<dynamic>('record_delivery_receipts', params: {
      'p_receipts': [
        for (final MapEntry(value: receipt) in waiting)
          {for (final name in ['push_id', 'device_token', 'status', 'at']) name: receipt[name]},
      ],
    });
  } on Exception {
    return; // later
  }
  await PushStore.remove([for (final MapEntry(:key) in waiting) key]); // recorded, recorded before, or refused for good
}
