begin;
select plan(31);
delete from public.push_notifications; -- taken back at the end

insert into public.push_notifications (id, device_token, title, status, next_attempt_at, error_code, retry_count, expires_at, updated_at) values
  ('00000000-0000-0000-0000-000000000001', 't', 'pending', 'pending', now() + interval '1 h', null, 0, null, now()),
  ('00000000-0000-0000-0000-000000000002', 't', 'failed', 'failed', now() + interval '1 h', 'UNAVAILABLE', 1, null, now()),
  ('00000000-0000-0000-0000-000000000003', 't', 'processing', 'processing', now() + interval '1 min', null, 0, null, now()),
  ('00000000-0000-0000-0000-000000000004', 't', 'sent', 'sent', null, null, 0, null, now()),
  ('00000000-0000-0000-0000-000000000005', 't', 'dead', 'dead', null, 'UNREGISTERED', 5, null, now() - interval '2 h'),
  ('00000000-0000-0000-0000-000000000006', 't', 'dead later', 'dead', null, 'UNREGISTERED', 5, null, now() - interval '1 h'),
  ('00000000-0000-0000-0000-000000000007', 't', 'dead otherwise', 'dead', null, 'INTERNAL', 5, null, now() - interval '3 h'),
  ('00000000-0000-0000-0000-000000000008', 't', 'expired at adoption', 'expired', null, 'STALE_AT_ADOPTION', 0, null, now()),
  ('00000000-0000-0000-0000-000000000009', 't', 'expired', 'expired', null, 'STALE_AT_ADOPTION', 0, now() - interval '1 s', now());
update public.push_notifications set delivery_attempts = 1, next_attempt_at = now() + interval '1 h'
  where status in ('failed', 'processing'); -- as if they had been claimed

set local role service_role;
select is(public.cancel_push('00000000-0000-0000-0000-000000000001'), true, 'a push that waits can be cancelled');
select is(public.cancel_push('00000000-0000-0000-0000-000000000001'), false, 'once');
select is(public.cancel_push('00000000-0000-0000-0000-000000000002'), true, 'and one that waits for another try');
select is(public.cancel_push('00000000-0000-0000-0000-000000000003'), false, 'not one that is being sent');
select is(public.cancel_push('00000000-0000-0000-0000-000000000004'), false, 'not one that was');
select is(public.cancel_push('00000000-0000-0000-0000-00000000000f'), false, 'not one that is not there');
select throws_ok('select public.cancel_push(null)', '22023', null, 'null is no id');
reset role;
select results_eq(
  $$select title::text, status::text, next_attempt_at is null from public.push_notifications where id < '00000000-0000-0000-0000-000000000005' order by id$$,
  $$values ('pending', 'cancelled', true), ('failed', 'cancelled', true), ('processing', 'processing', false), ('sent', 'sent', true)$$,
  'two are');

set local role service_role;
select throws_ok('select public.requeue_pushes()', '22023', 'say which pushes: set p_ids, p_error_code, p_since, p_until, p_status or p_user_id', 'all of them is not said by saying nothing');
select throws_ok($$select public.requeue_pushes(p_error_code => 'x', p_limit => 0)$$, '22023', null, 'a limit is at least 1');
select throws_ok($$select public.requeue_pushes(p_error_code => 'x', p_limit => 10001)$$, '22023', null, 'and at most 10000');
select throws_ok('select public.requeue_pushes(array_fill(gen_random_uuid(), array[10001]))', '22023', null, 'and so are ids');
select is(public.requeue_pushes(p_ids => '{}'), 0, 'no ids are none');
select is(public.requeue_pushes(p_error_code => 'UNREGISTERED', p_limit => 1), 1, 'by what went wrong, as many as asked for');
select is(public.requeue_pushes(p_since => now() - interval '90 min', p_error_code => 'UNREGISTERED'), 1, 'and since when');
select is(public.requeue_pushes(p_error_code => 'STALE_AT_ADOPTION'), 1, 'what is past its expires_at stays');
select is(public.requeue_pushes(p_ids => array['00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-000000000003',
  '00000000-0000-0000-0000-000000000004', '00000000-0000-0000-0000-00000000000f', null]::uuid[]), 1, 'by id: only what was given up');
reset role;
select results_eq(
  $$select title::text from public.push_notifications where status = 'pending' and next_attempt_at = now() and retry_count = 0
      and updated_at = now() order by id$$,
  array['pending', 'dead', 'dead later', 'expired at adoption'], 'they are in the queue again, with all their tries');
select results_eq(
  $$select title::text from public.push_notifications where status = 'dead'$$, array['dead otherwise'], 'what was not meant is where it was');
set local role service_role;
select is(count(*)::integer, 4, 'and are handed out') from public.fetch_pending_pushes();

-- By status, user and time.
reset role;
insert into public.push_notifications (user_id, title, status, next_attempt_at, updated_at, error_code)
  select case when n % 2 = 0 then 'a0000000-0000-0000-0000-00000000000a'::uuid else 'b0000000-0000-0000-0000-00000000000b' end,
         'many', case when n <= 4 then 'dead' when n <= 8 then 'cancelled' else 'sent' end, null, now() - n * interval '1 h', 'MANY'
    from generate_series(1, 12) n;
set local role service_role;
select is(public.requeue_pushes(p_error_code => 'MANY', p_status => 'dead', p_since => now() - interval '2 h'), 2, 'of one status');
select is(public.requeue_pushes(p_user_id => 'a0000000-0000-0000-0000-00000000000a', p_error_code => 'MANY', p_status => 'dead'), 1, 'of one user');
select is(public.requeue_pushes(p_error_code => 'MANY', p_since => now() - interval '6 h', p_until => now() - interval '5 h'), 2, 'of a time');
select is(public.requeue_pushes(p_user_id => 'b0000000-0000-0000-0000-00000000000b', p_until => now() - interval '7 h'), 1, 'of a user, until then');
select is(public.requeue_pushes(p_status => 'cancelled', p_since => now() - interval '8 h', p_until => now() - interval '8 h'), 1, 'both ends are within');
reset role;
select is((select count(*)::integer from public.push_notifications where title = 'many' and status = 'pending'), 7, 'what was sent stays');
set local role service_role;
select throws_ok($$select public.requeue_pushes(p_status => 'sent')$$, '22023', 'p_status must be dead, expired, failed or cancelled: no other push can be put back', 'not what was sent');
select throws_ok($$select public.requeue_pushes(p_status => '')$$, '22023', null, 'no status at all');
select is(public.requeue_pushes(p_user_id => '00000000-0000-0000-0000-00000000000f'), 0, 'nobody''s');

set local role authenticated;
select throws_ok($$select public.cancel_push('00000000-0000-0000-0000-000000000001')$$, '42501', null, 'not for users');
select throws_ok($$select public.requeue_pushes(p_error_code => 'x')$$, '42501', null, 'not for users');

select * from finish();
rollback;
