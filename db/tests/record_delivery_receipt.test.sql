begin;
select plan(47);

insert into public.push_devices (token, user_id, platform, disabled_at, created_at) values
  ('ann-phone', 'a0000000-0000-0000-0000-00000000000a', 'android', null, now() - interval '1 day'),
  ('ann-old-phone', 'a0000000-0000-0000-0000-00000000000a', 'android', now(), now() - interval '1 day'),
  ('ann-new-phone', 'a0000000-0000-0000-0000-00000000000a', 'android', null, now()),
  ('bob-phone', 'b0000000-0000-0000-0000-00000000000b', 'ios', null, now() - interval '1 day');
insert into public.push_notifications (id, user_id, device_token, title, status, next_attempt_at) values
  ('00000000-0000-0000-0000-000000000001', 'a0000000-0000-0000-0000-00000000000a', null, 'to Ann', 'sent', null),
  ('00000000-0000-0000-0000-000000000002', 'a0000000-0000-0000-0000-00000000000a', null, 'being sent', 'processing', now() + interval '1 min'),
  ('00000000-0000-0000-0000-000000000003', null, 'ann-phone', 'to Ann''s phone', 'sent', null),
  ('00000000-0000-0000-0000-000000000004', 'b0000000-0000-0000-0000-00000000000b', null, 'to Bob', 'sent', null),
  ('00000000-0000-0000-0000-000000000005', 'a0000000-0000-0000-0000-00000000000a', null, 'given up', 'dead', null),
  ('00000000-0000-0000-0000-000000000006', 'a0000000-0000-0000-0000-00000000000a', 'elsewhere', 'to a phone of hers', 'sent', null);
insert into public.push_notifications
  (id, user_id, title, status, next_attempt_at, delivery_attempts, lost_claims, error_code, sent_at, updated_at)
values
  ('00000000-0000-0000-0000-000000000011', 'a0000000-0000-0000-0000-00000000000a', 'waits', 'pending', now(), 0, 0, null, null, now()),
  ('00000000-0000-0000-0000-000000000012', 'a0000000-0000-0000-0000-00000000000a', 'claimed before', 'processing', now(), 1, 0, null, null, now() - interval '1 min'),
  ('00000000-0000-0000-0000-000000000013', 'a0000000-0000-0000-0000-00000000000a', 'marked by a worker', 'sent', null, 1, 0, null, now() - interval '1 h', now()),
  ('00000000-0000-0000-0000-000000000014', 'a0000000-0000-0000-0000-00000000000a', 'refused by FCM', 'dead', null, 1, 0, 'UNREGISTERED', null, now()),
  ('00000000-0000-0000-0000-000000000015', 'a0000000-0000-0000-0000-00000000000a', 'its worker died', 'pending', now(), 1, 1, null, null, now()),
  ('00000000-0000-0000-0000-000000000016', 'a0000000-0000-0000-0000-00000000000a', 'its result was not written', 'dead', null, 1, 0, 'NOT_WRITTEN', null, now()),
  ('00000000-0000-0000-0000-000000000017', 'a0000000-0000-0000-0000-00000000000a', 'to one of two', 'sent', null, 1, 0, null, now(), now());
insert into public.push_delivery_logs (push_id, device_token, status, details) values
  ('00000000-0000-0000-0000-000000000013', null, 'sent', '{"attempt": 1}'),
  ('00000000-0000-0000-0000-000000000014', 'ann-phone', 'failed', '{"attempt": 1}'),
  ('00000000-0000-0000-0000-000000000017', 'ann-phone', 'failed', '{"attempt": 1}'),
  ('00000000-0000-0000-0000-000000000017', 'ann-tablet', 'sent', '{"attempt": 1}'),
  ('00000000-0000-0000-0000-000000000001', 'ann-old-phone', 'sent', '{"attempt": 1}'),
  ('00000000-0000-0000-0000-000000000005', 'ann-phone', 'unknown', '{"attempt": 1}'),
  ('00000000-0000-0000-0000-000000000001', 'logged-only', 'sent', '{}'),
  ('00000000-0000-0000-0000-000000000001', 'ann-phone', 'unknown', '{"attempt": 1}');

create function pg_temp.receipt(place integer, token text, status text, details jsonb default null) returns boolean
  language sql as $$ select public.record_delivery_receipt(format('00000000-0000-0000-0000-%s', lpad(place::text, 12, '0'))::uuid, token, status, details) $$;

set local role authenticated;
set local request.jwt.claims = '{"sub": "a0000000-0000-0000-0000-00000000000a", "role": "authenticated"}';

select is(pg_temp.receipt(1, 'ann-phone', 'delivered', '{"os": "android"}'), true, 'a device reports its push');
select is(pg_temp.receipt(1, 'ann-phone', 'delivered', '{"os": "other"}'), false, 'twice');
select is(pg_temp.receipt(1, 'ann-phone', 'opened'), true, 'another event');
select is(pg_temp.receipt(1, 'ann-phone', 'clicked'), true, 'and another');
select is(pg_temp.receipt(1, 'ann-old-phone', 'delivered'), true, 'another device, though FCM called it dead');
select is(pg_temp.receipt(1, 'logged-only', 'delivered'), true, 'a device that the push was sent to is enough');
select is(pg_temp.receipt(1, 'ann-phone', 'unknown'), true, 'an attempt of the sender''s is not a receipt');
select is(pg_temp.receipt(1, 'ann-phone', 'unknown'), false, 'and this one was there');
select is(pg_temp.receipt(2, 'ann-phone', 'opened'), true, 'before FCM''s answer is written down');
select is(pg_temp.receipt(3, 'ann-phone', 'delivered'), true, 'a push to the device itself, without a user');
select is(pg_temp.receipt(5, 'ann-phone', 'delivered'), true, 'a push that was given up and came after all');
select is(pg_temp.receipt(6, 'elsewhere', 'failed'), true, 'a push to her and to a device that is not registered');

-- Which devices it was sent to.
select is(pg_temp.receipt(12, 'ann-phone', 'delivered'), true, 'being sent: a device from before the claim');
select is(pg_temp.receipt(13, 'ann-phone', 'delivered'), true, 'sent by a worker, which names no device: one from before that');
select is(pg_temp.receipt(15, 'ann-phone', 'delivered'), true, 'what FCM said is lost with the worker');
select is(pg_temp.receipt(16, 'ann-phone', 'delivered'), true, 'or could not be written');
select is(pg_temp.receipt(17, 'ann-tablet', 'delivered'), true, 'the device that FCM accepted it for');
select throws_ok(format('select pg_temp.receipt(%s, %L, %L)', push, token, 'delivered'), '42501',
                 'this is no push of yours to this device', why)
  from (values
    (11, 'ann-phone', 'not before it is sent'),
    (12, 'ann-new-phone', 'being sent: not to a device that came after the claim'),
    (13, 'ann-new-phone', 'sent by a worker: not to a device that came later'),
    (14, 'ann-phone', 'not where FCM refused it'),
    (17, 'ann-phone', 'not for the device that FCM refused it for'),
    (17, 'ann-new-phone', 'nor for one that was not tried'),
    (1, 'ann-new-phone', 'nor for one that the log does not name'),
    (6, 'ann-phone', 'a push to another device of hers'),
    (12, 'ann-old-phone', 'being sent: not to a device that is disabled')
  ) as refused(push, token, why);

select throws_ok($$select pg_temp.receipt(4, 'bob-phone', 'delivered')$$, '42501', 'this is no push of yours to this device', 'not Bob''s push');
select throws_ok($$select pg_temp.receipt(4, 'ann-phone', 'delivered')$$, '42501', 'this is no push of yours to this device', 'not Bob''s push to her phone');
select throws_ok($$select pg_temp.receipt(99, 'ann-phone', 'delivered')$$, '42501', 'this is no push of yours to this device', 'an unknown push looks the same');
select throws_ok($$select pg_temp.receipt(1, 'bob-phone', 'opened')$$, '42501', null, 'not from a device that has nothing to do with it');

set local request.jwt.claims = '{"sub": "b0000000-0000-0000-0000-00000000000b"}';
select throws_ok($$select pg_temp.receipt(3, 'ann-phone', 'opened')$$, '42501', null, 'not for a push to somebody else''s device');
set local request.jwt.claims = '{}';
select throws_ok($$select pg_temp.receipt(1, 'ann-phone', 'opened')$$, '42501', null, 'not without a user');
set local request.jwt.claims = '{"sub": "a0000000-0000-0000-0000-00000000000a"}';

select throws_ok($$select pg_temp.receipt(1, 'ann-phone', 'sent')$$, '22023', 'p_status must be delivered, opened, clicked, failed or unknown', 'sent is not for devices to say');
select throws_ok($$select pg_temp.receipt(1, 'ann-phone', null)$$, '22023', null, 'a status is needed');
select throws_ok($$select pg_temp.receipt(1, null, 'opened')$$, '22023', null, 'a token is needed');
select throws_ok($$select pg_temp.receipt(1, 'ann-phone', 'opened', '[]')$$, '22023', 'p_details must be a JSON object', 'details are an object');
select throws_ok($$select pg_temp.receipt(1, 'ann-phone', 'opened', jsonb_build_object('a', repeat('x', 2040)))$$, '22023', 'p_details: larger than 2048 bytes', 'of at most 2 KB');
select throws_ok($$select pg_temp.receipt(1, 'ann-phone', 'opened', '{"a": [1e400]}')$$, '22023', 'p_details: has a number of more than 400 digits', 'and no endless numbers');

set local role service_role;
set local request.jwt.claims = '{"role": "service_role"}';
select is(pg_temp.receipt(4, 'bob-phone', 'clicked'), true, 'a service may report for anybody');
select throws_ok($$select pg_temp.receipt(99, 'bob-phone', 'clicked')$$, 'PT404', null, 'and is told when there is no such push');
select throws_ok($$select pg_temp.receipt(11, 'ann-phone', 'clicked')$$, '55000', 'push 00000000-0000-0000-0000-000000000011 has not been sent to any device, so no device can have received it', 'or when it has not been sent');
set local role anon;
select throws_ok($$select pg_temp.receipt(1, 'ann-phone', 'opened')$$, '42501', null, 'not for anon');

reset role;
select results_eq(
  $$select title, status, delivered_at is not null from public.push_notifications
      where id::text like '00000000-0000-0000-0000-00000000000_' order by id$$,
  $$values ('to Ann', 'delivered', true), ('being sent', 'processing', true), ('to Ann''s phone', 'delivered', true),
           ('to Bob', 'delivered', true), ('given up', 'dead', true), ('to a phone of hers', 'sent', false)$$,
  'sent becomes delivered; nothing else changes its status');
select results_eq(
  $$select device_token, status from public.push_delivery_logs
      where push_id = '00000000-0000-0000-0000-000000000001' and details ? 'receipt' order by 1, 2$$,
  $$values ('ann-old-phone', 'delivered'), ('ann-phone', 'clicked'), ('ann-phone', 'delivered'), ('ann-phone', 'opened'),
           ('ann-phone', 'unknown'), ('logged-only', 'delivered')$$,
  'one log row for each push, device and event');
select is(details, '{"receipt": {"os": "android"}}', 'the details of the first are kept, apart from what a sender writes')
  from public.push_delivery_logs where push_id = '00000000-0000-0000-0000-000000000001' and device_token = 'ann-phone' and status = 'delivered';

update public.push_notifications set claimed_by = null where title = 'being sent';
select is(public.mark_push_sent('00000000-0000-0000-0000-000000000002'), 'delivered', 'settling makes it delivered');
update public.push_notifications set delivered_at = now() - interval '1 h' where title = 'to Bob';
select pg_temp.receipt(4, 'bob-phone', 'delivered');
select is(delivered_at, now() - interval '1 h', 'the first time counts') from public.push_notifications where title = 'to Bob';

select * from finish();
rollback;
