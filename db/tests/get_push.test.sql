begin;
select plan(14);

insert into public.push_devices (token, user_id, platform) values
  ('phone', 'a0000000-0000-0000-0000-00000000000a', 'android'), ('tablet', 'a0000000-0000-0000-0000-00000000000a', 'ios');
insert into public.push_notifications (id, user_id, device_token, title, status, next_attempt_at, sent_at, delivered_at, retry_count, error_code, last_error, created_at) values
  ('00000000-0000-0000-0000-000000000001', 'a0000000-0000-0000-0000-00000000000a', null, 'secret', 'delivered', null, '2026-01-01T00:00:05Z', '2026-01-01T00:00:09Z', 1, null, null, '2026-01-01Z'),
  ('00000000-0000-0000-0000-000000000002', 'b0000000-0000-0000-0000-00000000000b', 'phone', 'secret', 'dead', null, null, null, 2, 'UNREGISTERED', 'gone', '2026-01-01Z'),
  ('00000000-0000-0000-0000-000000000003', null, 'phone', 'secret', 'pending', '2999-01-01Z', null, null, 0, null, null, '2026-01-01Z');
insert into public.push_delivery_logs (push_id, device_token, status, details, created_at) values
  ('00000000-0000-0000-0000-000000000001', 'phone', 'failed', '{"attempt": 1, "code": "UNAVAILABLE"}', '2026-01-01T00:00:01Z'),
  ('00000000-0000-0000-0000-000000000001', 'phone', 'sent', '{"attempt": 2}', '2026-01-01T00:00:05Z'),
  ('00000000-0000-0000-0000-000000000001', 'phone', 'delivered', '{"receipt": {"code": "not ours"}, "at": "2026-01-01T00:00:09+00:00"}', '2026-01-01T01:00:00Z'),
  ('00000000-0000-0000-0000-000000000001', 'tablet', 'failed', '{"attempt": 1, "code": "UNREGISTERED"}', '2026-01-01T00:00:02Z'),
  ('00000000-0000-0000-0000-000000000001', 'moved away', 'sent', '{"attempt": 1}', '2026-01-01T00:00:03Z'),
  ('00000000-0000-0000-0000-000000000001', 'sick', 'sent', '{"attempt": 1}', '2026-01-01T00:00:03Z'),
  ('00000000-0000-0000-0000-000000000001', 'sick', 'failed', '{"receipt": {}}', '2026-01-01T00:00:20Z'),
  ('00000000-0000-0000-0000-000000000001', null, 'sent', '{"topic": "x"}', '2026-01-01T00:00:03Z');

create temporary table answer (name text primary key, value jsonb) on commit drop;
grant all on answer to authenticated, service_role;
set local timezone = 'UTC';
set local role authenticated;
set local request.jwt.claims = '{"sub": "a0000000-0000-0000-0000-00000000000a"}';
insert into answer values ('own', public.get_push('00000000-0000-0000-0000-000000000001'));
select throws_ok($$select public.get_push('00000000-0000-0000-0000-000000000002')$$, '42501', 'this is no push of yours', 'not another''s, though to her phone');
select throws_ok($$select public.get_push('00000000-0000-0000-0000-000000000003')$$, '42501', 'this is no push of yours', 'nor nobody''s');
select throws_ok($$select public.get_push('00000000-0000-0000-0000-00000000000f')$$, '42501', 'this is no push of yours', 'an unknown one looks the same');
select throws_ok($$select public.get_push(null)$$, '22023', null, 'null is no push');
set local request.jwt.claims = '{}';
select throws_ok($$select public.get_push('00000000-0000-0000-0000-000000000003')$$, '42501', null, 'not without a user');
set local role anon;
select throws_ok($$select public.get_push('00000000-0000-0000-0000-000000000003')$$, '42501', null, 'not for anon');
set local role service_role;
insert into answer values ('dead', public.get_push('00000000-0000-0000-0000-000000000002')), ('waits', public.get_push('00000000-0000-0000-0000-000000000003'));
select throws_ok($$select public.get_push('00000000-0000-0000-0000-00000000000f')$$, 'PT404', null, 'a service is told that there is none');
reset role;

select is(value - 'devices', '{"id": "00000000-0000-0000-0000-000000000001", "status": "delivered", "error_code": null, "last_error": null,
  "created_at": "2026-01-01T00:00:00+00:00", "sent_at": "2026-01-01T00:00:05+00:00", "delivered_at": "2026-01-01T00:00:09+00:00",
  "retry_count": 1, "next_attempt_at": null}', 'what has become of it') from answer where name = 'own';
select is(value -> 'devices', '[
  {"status": "failed", "platform": "ios", "at": "2026-01-01T00:00:02+00:00", "code": "UNREGISTERED"},
  {"status": "sent", "platform": null, "at": "2026-01-01T00:00:03+00:00", "code": null},
  {"status": "delivered", "platform": "android", "at": "2026-01-01T00:00:09+00:00", "code": null},
  {"status": "failed", "platform": null, "at": "2026-01-01T00:00:20+00:00", "code": null}]',
  'of each device how far it got') from answer where name = 'own';
select unalike(value::text, '%phone%', 'no token is in it') from answer where name = 'own';
select unalike(value::text, '%secret%', 'no text is in it') from answer where name = 'own';
select is(value ->> 'error_code', 'UNREGISTERED', 'why it is dead') from answer where name = 'dead';
select is(value -> 'devices', '[]', 'it went to no device') from answer where name = 'dead';
select is(value -> 'next_attempt_at', '"2999-01-01T00:00:00+00:00"', 'and when it is next tried') from answer where name = 'waits';

select * from finish();
rollback;
