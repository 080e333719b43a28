// Telemetry in batches. A batch keeps its id through retries and restarts, so it is never stored twice.
import 'dart:async';
import 'dart:convert';

import 'package:flutter/widgets.dart';
import 'package:supabase_flutter/supabase_flutter.dart';
import 'package:uuid/uuid.dart';

import 'push_store.dart';

const _batches = 'push.batch.';

class Telemetry {
  Telemetry(this._supabase) {
    _userId = _supabase.auth.currentUser?.id;
    _supabase.auth.onAuthStateChange.listen((state) {
      if (state.session?.user.id == _userId) return;
      unawaited(_freeze());
      _userId = state.session?.user.id;
    }, onError: (Object _) {});
    Timer.periodic(const Duration(seconds: 10), (_) => flush());
    AppLifecycleListener(onHide: flush);
  }

  static const _mostRecords = 100;
  static const _mostCharacters = 500000; // of JSON; the database takes 2 MiB
  static const _mostBatches = 100;

  final SupabaseClient _supabase;
  var _records = <Map<String, Object?>>[];
  var _characters = 0;
  String? _userId;
  Future<void> _chain = Future.value();

  /// Records that are no JSON, or that the phone or the database has refused.
  int dropped = 0;

  /// Never waits and never throws. False if nobody is signed in (telemetry belongs to a user) or [meta] is no JSON.
  bool log(String type, [String message = '', Map<String, Object?>? meta]) {
    if (_userId == null) return false;
    final record = {
      'type': type,
      'message': message,
      'timestamp': DateTime.now().toUtc().toIso8601String(),
      if (meta != null) 'meta': meta,
    };
    final String text;
    try {
      text = jsonEncode(record);
    } on JsonUnsupportedObjectError {
      dropped++;
      return false;
    }
    if (_characters + text.length > _mostCharacters) unawaited(flush());
    // A copy: the caller may change [meta], and what is no JSON any more would take the whole batch with it.
    _records.add(jsonDecode(text) as Map<String, Object?>);
    _characters += text.length;
    if (_records.length >= _mostRecords) unawaited(flush());
    return true;
  }

  /// Sends what waits, oldest first, and stops at the first batch that gets no answer. One at a time.
  Future<void> flush() {
    final frozen = _freeze();
    return _chain = _chain.then((_) => frozen).then((_) => _sendAll()).catchError((Object _) {});
  }

  /// Makes a batch of the records in memory, before anything is sent: from here on a restart loses nothing.
  Future<void> _freeze() async {
    final (records, userId) = (_records, _userId);
    (_records, _characters) = ([], 0);
    if (records.isEmpty || userId == null) return;
    try {
      await _keep(DateTime.now().toUtc().toIso8601String(), const Uuid().v4(), userId, records);
    } on Exception {
      dropped += records.length; // the phone has no room
    }
  }

  Future<void> _keep(String at, String id, String userId, List<Object?> records) => PushStore.add(
        '$_batches$at.$id',
        {'id': id, 'at': at, 'user_id': userId, 'records': records},
        queue: _batches,
        most: _mostBatches,
      );

  Future<void> _sendAll() async {
    while (_userId != null) {
      final waiting = await PushStore.waiting(_batches, _userId!);
      if (waiting.isEmpty) return;
      final MapEntry(:key, value: batch) = waiting.entries.first;
      final records = batch['records'] as List<Object?>;
      try {
        final answer = await _supabase.rpc<Map<String, dynamic>>('flush_telemetry', params: {
          'p_payloads': records,
          'p_batch_id': batch['id'],
        });
        dropped += (answer['rejected'] as List<Object?>).length;
      } on PostgrestException catch (error) {
        // Any other: no session, too much within an hour, a server that is away. Later, with this id.
        if (!const {'22023', '22P02', '22P05', 'PT413'}.contains(error.code)) return;
        if (records.length == 1) {
          dropped++;
        } else {
          await _halve(batch, records);
        }
      }
      await PushStore.remove([key]);
    }
  }

  /// The database has refused the whole batch: one half of it may be good. The ids follow from the batch's id, so that
  /// an app that is ended here makes the same halves again.
  Future<void> _halve(Map<String, dynamic> batch, List<Object?> records) async {
    final half = records.length ~/ 2;
    for (final (name, part) in [('first', records.sublist(0, half)), ('second', records.sublist(half))]) {
      final id = const Uuid().v5(batch['id'] as String, name);
      await _keep(batch['at'] as String, id, batch['user_id'] as String, part);
    }
  }
}
