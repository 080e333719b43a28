begin;
select plan(35);
delete from public.push_notifications; -- taken back at the end

insert into public.push_notifications (id, device_token, title, next_attempt_at, status, claimed_by, retry_count, expires_at, delivered_at)
values
  ('00000000-0000-0000-0000-000000000001', 'token-1', 'sent', now(), 'processing', null, 0, null, null),
  ('00000000-0000-0000-0000-000000000002', 'token-2', 'receipt came first', now(), 'processing', null, 0, null, now()),
  ('00000000-0000-0000-0000-000000000003', 'token-3', 'fails', now(), 'processing', null, 0, null, null),
  ('00000000-0000-0000-0000-000000000004', 'token-4', 'last try', now(), 'processing', null, 4, null, null),
  ('00000000-0000-0000-0000-000000000005', 'token-5', 'expires soon', now(), 'processing', null, 0, now() + interval '9 s', null),
  ('00000000-0000-0000-0000-000000000006', 'token-6', 'a listener has it', now(), 'processing', 7, 0, null, null),
  ('00000000-0000-0000-0000-000000000007', 'token-7', 'waits', now(), 'pending', null, 0, null, null),
  ('00000000-0000-0000-0000-000000000008', 'token-8', 'cancelled', null, 'cancelled', null, 0, null, null),
  ('00000000-0000-0000-0000-000000000009', 'token-9', 'fails too', now(), 'processing', null, 3, now() + interval '1 day', null);
update public.push_notifications set delivery_attempts = 1, next_attempt_at = now() where status = 'processing'; -- claimed

set local role service_role;
select is(public.mark_push_sent('00000000-0000-0000-0000-000000000001'), 'sent', 'sent');
select is(public.mark_push_sent('00000000-0000-0000-0000-000000000001'), 'sent', 'and the same again');
select is(public.mark_push_sent('00000000-0000-0000-0000-000000000002'), 'delivered', 'delivered, where the device was faster');
select is(public.mark_push_failed('00000000-0000-0000-0000-000000000003', 'no route'), 'failed', 'failed');
select is(public.mark_push_failed('00000000-0000-0000-0000-000000000003', 'no route'), 'failed', 'and the same again');
select is(public.mark_push_failed('00000000-0000-0000-0000-000000000004', null), 'dead', 'dead after the fifth try');
select is(public.mark_push_failed('00000000-0000-0000-0000-000000000005', repeat('x', 1000000)), 'expired', 'expired before the next try');
select is(public.mark_push_failed('00000000-0000-0000-0000-000000000009', ''), 'failed', 'failed for the fourth time');

select throws_ok($$select public.mark_push_sent('00000000-0000-0000-0000-000000000006')$$, '55000',
  'push 00000000-0000-0000-0000-000000000006 is claimed by push-listener worker 7, and only that worker may settle it',
  'what a listener holds is not for others to settle');
select throws_ok($$select public.mark_push_failed('00000000-0000-0000-0000-000000000006', 'x')$$, '55000', null, 'neither way');
select throws_ok($$select public.mark_push_sent('00000000-0000-0000-0000-000000000007')$$, '55000',
  'push 00000000-0000-0000-0000-000000000007 is pending, not being sent', 'nor what nobody has taken');
select throws_ok($$select public.mark_push_failed('00000000-0000-0000-0000-000000000008', 'x')$$, '55000', null, 'nor what is over');
select throws_ok($$select public.mark_push_failed('00000000-0000-0000-0000-000000000001', 'x')$$, '55000', null, 'sent does not become failed');
select throws_ok($$select public.mark_push_sent('00000000-0000-0000-0000-000000000003')$$, '55000', null, 'failed does not become sent');
select throws_ok($$select public.mark_push_sent('00000000-0000-0000-0000-00000000000f')$$, 'PT404',
  'there is no push 00000000-0000-0000-0000-00000000000f', 'an unknown id is said to be one');
select throws_ok('select public.mark_push_sent(null)', '22023', null, 'null is no id');
select throws_ok($$select public.mark_push_failed(null, 'x')$$, '22023', null, 'null is no id');

reset role;
select results_eq(
  $$select status, next_attempt_at, retry_count, sent_at, last_error from public.push_notifications where title = 'sent'$$,
  $$values ('sent', null::timestamptz, 0, now(), null::text)$$, 'sent: over, with its time');
select results_eq(
  $$select status, retry_count, error_code, last_error from public.push_notifications where title = 'fails'$$,
  $$values ('failed', 1, 'WORKER_FAILED', 'no route')$$, 'failed: one try used up, with the reason');
select ok(next_attempt_at between now() + interval '10 s' and now() + interval '20 s', 'first retry after 10 to 20 s')
  from public.push_notifications where title = 'fails';
select ok(next_attempt_at between now() + interval '10 s' and now() + interval '160 s', 'fourth retry after 10 to 160 s')
  from public.push_notifications where title = 'fails too';
select is(last_error, 'the worker gave no reason', 'an empty reason is none') from public.push_notifications where title = 'fails too';
select results_eq(
  $$select status, next_attempt_at, retry_count, last_error from public.push_notifications where title = 'last try'$$,
  $$values ('dead', null::timestamptz, 5, 'given up after 5 tries: the worker gave no reason')$$, 'dead: over, with the reason');
select results_eq(
  $$select status, next_attempt_at, length(last_error) from public.push_notifications where title = 'expires soon'$$,
  $$values ('expired', null::timestamptz, 2029)$$, 'expired: over, and a long reason is cut');
select is(count(*)::integer, 4, 'what could not be settled has not changed')
  from public.push_notifications
  where title in ('a listener has it', 'waits', 'cancelled') and updated_at = created_at and last_error is null
     or title = 'receipt came first' and delivered_at is not null;

select results_eq(
  $$select l.device_token, l.status, l.details ->> 'attempt', l.details ->> 'code'
      from public.push_delivery_logs l join public.push_notifications p on p.id = l.push_id
      where p.title = 'sent'$$,
  $$values ('token-1', 'sent', '1', null::text)$$, 'one log row for sent, however often it was said');
select results_eq(
  $$select l.device_token, l.status, l.details ->> 'reason', l.details ->> 'code'
      from public.push_delivery_logs l join public.push_notifications p on p.id = l.push_id
      where p.title = 'fails'$$,
  $$values ('token-3', 'failed', 'no route', 'WORKER_FAILED')$$, 'one log row for failed');
select is(count(*)::integer, 6, 'and one for each of the others')
  from public.push_delivery_logs l join public.push_notifications p on p.id = l.push_id;

-- The whole way, by the clock of the row: five failures, then dead.
update public.push_notifications set status = 'cancelled', next_attempt_at = null;
insert into public.push_notifications (id, device_token, title) values ('00000000-0000-0000-0000-000000000011', 'token-11', 'hopeless');
create function pg_temp.fail_once() returns text language plpgsql as $$
begin
  -- Long ago: the trigger makes it due at the time of the update, in the statement that fetches it.
  update public.push_notifications set next_attempt_at = now() - interval '1 minute'
    where title = 'hopeless' and status <> 'dead';
  perform public.fetch_pending_pushes();
  return public.mark_push_failed('00000000-0000-0000-0000-000000000011', 'again');
end
$$;
select is(pg_temp.fail_once(), case n when 5 then 'dead' else 'failed' end, 'try ' || n) from generate_series(1, 5) n;
select is(count(*)::integer, 5, 'five tries are five log rows')
  from public.push_delivery_logs where push_id = '00000000-0000-0000-0000-000000000011';

set local role authenticated;
select throws_ok($$select public.mark_push_sent('00000000-0000-0000-0000-000000000001')$$, '42501', null, 'not for users');

select * from finish();
rollback;
