-- The time of a receipt, and many receipts in one call.
begin;
select plan(27);

insert into public.push_devices (token, user_id, platform, created_at) values
  ('phone', 'a0000000-0000-0000-0000-00000000000a', 'android', now() - interval '9 d');
insert into public.push_notifications (id, user_id, title, status, next_attempt_at, sent_at, created_at)
  select format('00000000-0000-0000-0000-%s', lpad(n::text, 12, '0'))::uuid,
         case when n = 9 then 'b0000000-0000-0000-0000-00000000000b'::uuid else 'a0000000-0000-0000-0000-00000000000a' end,
         'n', 'sent', null, now() - interval '1 h', now() - interval '2 h'
    from generate_series(1, 9) n;
insert into public.push_delivery_logs (push_id, device_token, status) select id, 'phone', 'sent' from public.push_notifications where title = 'n';
update public.push_notifications set status = 'processing', sent_at = null, next_attempt_at = now() + interval '1 min'
  where id = '00000000-0000-0000-0000-000000000006';

create function pg_temp.push(n integer) returns uuid language sql as $$ select format('00000000-0000-0000-0000-%s', lpad(n::text, 12, '0'))::uuid $$;
create function pg_temp.huge() returns jsonb language sql as $$ select jsonb_agg('1e131071'::jsonb) from generate_series(1, 20000) $$;
create function pg_temp.receipt(n integer, status text, at timestamptz) returns boolean language sql as
  $$ select public.record_delivery_receipt(p_push_id => pg_temp.push(n), p_device_token => 'phone', p_status => status, p_at => at) $$;
set local role authenticated;
set local request.jwt.claims = '{"sub": "a0000000-0000-0000-0000-00000000000a"}';

select ok(pg_temp.receipt(1, 'delivered', now() - interval '30 min'), 'late, with its time');
select ok(pg_temp.receipt(2, 'delivered', now() - interval '3 h'), 'a clock that is slow');
select ok(pg_temp.receipt(3, 'delivered', now() + interval '1 d'), 'a clock that is fast');
select ok(pg_temp.receipt(4, 'opened', now() - interval '10 min'), 'opened, which arrives first');
select ok(pg_temp.receipt(4, 'delivered', now() - interval '20 min'), 'and was delivered earlier');
select ok(pg_temp.receipt(5, 'delivered', '-infinity'), 'no time at all');
select ok(pg_temp.receipt(6, 'delivered', now() - interval '90 min'), 'while it is being sent');
select ok(pg_temp.receipt(7, 'delivered', 'infinity'), 'no time at all');
select is(pg_temp.receipt(1, 'delivered', now() - interval '40 min'), false, 'once');
reset role;
select results_eq(
  $$select now() - delivered_at from public.push_notifications where title = 'n' and delivered_at is not null order by id$$,
  array['30 min', '1 h', '0', '20 min', '1 h', '90 min', '0']::interval[],
  'between the sending, or the insert, and now; the earliest counts');
select ok(bool_and(created_at = now()), 'the log has the time of arrival') from public.push_delivery_logs where details ? 'receipt';
select is((details ->> 'at')::timestamptz, now() - interval '30 min', 'and that of the event')
  from public.push_delivery_logs where push_id = pg_temp.push(1) and details ? 'receipt';
select is(sum(delivered_timed)::integer, 6, 'the statistics count each once') from push_listener.daily_counts;
select is(sum(delivered_seconds)::integer, (90 + 60 + 120 + 100 + 60 + 120) * 60, 'with the seconds until then') from push_listener.daily_counts;

set local role authenticated;
create temporary table noted (place integer, recorded boolean, error text) on commit drop;
insert into noted select * from public.record_delivery_receipts(array[
  jsonb_build_object('push_id', pg_temp.push(8), 'device_token', 'phone', 'status', 'delivered', 'at', now() - interval '15 min'),
  jsonb_build_object('push_id', pg_temp.push(8), 'device_token', 'phone', 'status', 'delivered'),
  jsonb_build_object('push_id', pg_temp.push(8), 'device_token', 'phone', 'status', 'clicked', 'details', '{"button": "yes"}'::jsonb),
  jsonb_build_object('push_id', pg_temp.push(9), 'device_token', 'phone', 'status', 'clicked'),
  jsonb_build_object('push_id', pg_temp.push(99), 'device_token', 'phone', 'status', 'clicked'),
  jsonb_build_object('push_id', pg_temp.push(8), 'device_token', 'phone', 'status', 'sent'),
  jsonb_build_object('push_id', pg_temp.push(8), 'device_token', 'phone', 'status', 'opened', 'details', jsonb_build_object('a', repeat('x', 2048))),
  jsonb_build_object('push_id', pg_temp.push(8), 'device_token', 'phone', 'status', 'opened', 'at', 'yesterday'),
  jsonb_build_object('push_id', pg_temp.push(8), 'device_token', 'phone', 'status', 'opened', 'more', 1),
  null, '7', '{"push_id": 1}', '{"push_id": "x"}', jsonb_build_object('push_id', pg_temp.push(8)),
  jsonb_build_object('push_id', pg_temp.push(8), 'device_token', '', 'status', 'opened'),
  -- Each of these would be more than a gigabyte as text.
  jsonb_build_object('push_id', pg_temp.huge(), 'device_token', 'phone', 'status', 'opened'),
  jsonb_build_object('push_id', pg_temp.push(8), 'device_token', pg_temp.huge(), 'status', 'opened'),
  jsonb_build_object('push_id', pg_temp.push(8), 'device_token', 'phone', 'status', pg_temp.huge()),
  jsonb_build_object('push_id', pg_temp.push(8), 'device_token', 'phone', 'status', 'opened', 'at', pg_temp.huge()),
  jsonb_build_object('push_id', pg_temp.push(8), 'device_token', 'phone', 'status', 'opened', 'details', jsonb_build_object('a', pg_temp.huge()))]);
reset role;
select results_eq('select * from noted', $$values
  (0, true, null), (1, false, null), (2, true, null), (3, false, 'this is no push of yours to this device'),
  (4, false, 'this is no push of yours to this device'), (5, false, 'status must be delivered, opened, clicked, failed or unknown'),
  (6, false, 'details: larger than 2048 bytes'), (7, false, 'at must be a time in ISO 8601'),
  (8, false, 'the keys of a receipt are push_id, device_token, status, details and at'), (9, false, 'this is not a JSON object'),
  (10, false, 'this is not a JSON object'), (11, false, 'push_id must be a UUID'), (12, false, 'push_id must be a UUID'),
  (13, false, 'device_token must be a string'), (14, false, 'device_token must be the registration token of the device'),
  (15, false, 'push_id must be a UUID'), (16, false, 'device_token must be a string'), (17, false, 'status must be a string'),
  (18, false, 'at must be a time in ISO 8601'), (19, false, 'details: larger than 2048 bytes')$$,
  'each by itself, in order');
select is(delivered_at, now() - interval '15 min', 'with its time') from public.push_notifications where id = pg_temp.push(8);
select results_eq($$select status, details -> 'receipt' from public.push_delivery_logs where push_id = pg_temp.push(8) and details ? 'receipt' order by 1$$,
  $$values ('clicked', '{"button": "yes"}'::jsonb), ('delivered', '{}')$$, 'and details');

-- By installation id
insert into public.push_devices (token, user_id, platform) values ('dIsVQ2QVRT-TWzQVxvNYhM', 'a0000000-0000-0000-0000-00000000000a', 'web');
insert into public.push_notifications (id, user_id, fid, title, status, next_attempt_at) values
  (pg_temp.push(20), 'a0000000-0000-0000-0000-00000000000a', 'dIsVQ2QVRT-TWzQVxvNYhM', 'to a fid', 'sent', null),
  (pg_temp.push(21), null, 'dIsVQ2QVRT-TWzQVxvNYhM', 'to a fid', 'sent', null),
  (pg_temp.push(22), 'a0000000-0000-0000-0000-00000000000a', 'somebody else''s', 'moved', 'sent', null);
set local role authenticated;
select ok(public.record_delivery_receipt(pg_temp.push(20), 'dIsVQ2QVRT-TWzQVxvNYhM', 'opened'), 'her push to her installation');
select ok(public.record_delivery_receipt(pg_temp.push(21), 'dIsVQ2QVRT-TWzQVxvNYhM', 'opened'), 'a push to her installation');
select throws_ok($$select public.record_delivery_receipt(pg_temp.push(21), 'phone', 'opened')$$, '42501', null, 'but not from another device');
select is((select string_agg(title, ' ') from public.push_notifications where fid is not null), 'to a fid',
          'she sees her pushes to installations that are hers now');

select throws_ok($$select public.record_delivery_receipts(null)$$, '22023', 'p_receipts must be an array of JSON objects', 'null is no array');
select throws_ok($$select public.record_delivery_receipts(array_fill('{}'::jsonb, array[501]))$$, '22023',
  'p_receipts has 501 elements, and at most 500 are taken at once', 'a call has a size');
set local request.jwt.claims = '{}';
select throws_ok($$select public.record_delivery_receipts('{}')$$, '42501', null, 'not without a user');
set local role anon;
select throws_ok($$select public.record_delivery_receipts('{}')$$, '42501', null, 'not for anon');
set local role service_role;
select results_eq(format($$select * from public.record_delivery_receipts(array['{"push_id": "%s", "device_token": "x", "status": "opened"}',
                                                                       '{"push_id": "%s", "device_token": "x", "status": "opened"}']::jsonb[])$$,
                         pg_temp.push(9), pg_temp.push(99)),
  format($$values (0, true, null), (1, false, 'there is no push %s')$$, pg_temp.push(99)), 'a service may report for anybody');
select is_empty($$select * from public.record_delivery_receipts('{}')$$, 'nothing is nothing');

select * from finish();
rollback;
