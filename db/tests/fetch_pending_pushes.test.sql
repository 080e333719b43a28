begin;
select plan(19);
delete from public.push_notifications; -- taken back at the end
-- Rows that are due long ago have become so while they waited. In the time of a test they must be inserted so.
alter table public.push_notifications disable trigger push_listener_never_early;
alter table public.push_notifications disable trigger push_listener_never_early_again;

insert into public.push_notifications (id, user_id, device_token, topic, condition, title, body, data, priority, status,
                                       next_attempt_at, expires_at, retry_count, claimed_by) values
  ('00000000-0000-0000-0000-000000000001', null, 'token-1', null, null, 'first', 'body', '{"a": 1}', 'normal', 'pending', now() - interval '3 s', null, 0, null),
  ('00000000-0000-0000-0000-000000000002', null, 'token-2', null, null, 'high', null, null, 'high', 'pending', now() - interval '1 s', now() + interval '1 h', 0, null),
  ('00000000-0000-0000-0000-000000000003', 'a0000000-0000-0000-0000-000000000001', null, null, null, 'a user', null, null, 'normal', 'failed', now() - interval '2 s', null, 2, 7),
  ('00000000-0000-0000-0000-000000000004', null, 'token-4', null, null, 'lease over', null, null, 'normal', 'processing', now() - interval '1 s', null, 0, 7),
  ('00000000-0000-0000-0000-000000000005', null, 'token-5', null, null, 'held', null, null, 'normal', 'processing', now() + interval '20 s', null, 0, 7),
  ('00000000-0000-0000-0000-000000000006', null, 'token-6', null, null, 'scheduled', null, null, 'normal', 'pending', now() + interval '1 h', null, 0, null),
  ('00000000-0000-0000-0000-000000000007', null, 'token-7', null, null, 'too late', null, null, 'normal', 'pending', now() - interval '9 s', now() - interval '1 s', 0, null),
  ('00000000-0000-0000-0000-000000000008', null, null, 'news', null, 'topic', null, null, 'high', 'pending', now() - interval '9 s', null, 0, null),
  ('00000000-0000-0000-0000-000000000009', null, null, null, '''a'' in topics', 'condition', null, null, 'normal', 'pending', now() - interval '9 s', null, 0, null),
  ('00000000-0000-0000-0000-000000000010', null, 'token-10', null, null, 'done', null, null, 'normal', 'sent', null, null, 0, 7);

set local role service_role;
select results_eq(
  'select title from public.fetch_pending_pushes(2)', array['high', 'first'],
  'high priority first, then what has been due longest, and no more than asked for');
select results_eq(
  'select title, user_id::text, device_token, status, retry_count, delivery_attempts from public.fetch_pending_pushes()',
  $$values ('a user', 'a0000000-0000-0000-0000-000000000001', null::text, 'processing', 2, 1),
           ('lease over', null::text, 'token-4', 'processing', 0, 1)$$,
  'then the rest that is due: a retry, and what somebody has not settled in time');
select is_empty('select id from public.fetch_pending_pushes()', 'nobody gets a row that is held');

reset role;
select is(status, 'expired', 'what is past its expires_at is not handed out')
  from public.push_notifications where title = 'too late';
select is(error_code, 'EXPIRED', 'and says why') from public.push_notifications where title = 'too late';
select is(next_attempt_at, null, 'and is not looked at again') from public.push_notifications where title = 'too late';
select is(status, 'pending', title || ': left to push-listener, which knows what to do with it')
  from public.push_notifications where title in ('topic', 'condition') order by title;
select is(claimed_by, null, 'a row that a listener lost is no longer its own') from public.push_notifications where title = 'lease over';
select is(next_attempt_at, now() + interval '60 s', 'the lease is a minute') from public.push_notifications where title = 'first';
select is(last_retry_at, now(), 'a second try is noted as one') from public.push_notifications where title = 'a user';
select is(claimed_by, 7, 'what a listener holds stays with it') from public.push_notifications where title = 'held';

update public.push_notifications set next_attempt_at = now() where title = 'first';
set local role service_role;
select results_eq(
  $$select id::text, data, body, delivery_attempts, created_at from public.fetch_pending_pushes()$$,
  $$values ('00000000-0000-0000-0000-000000000001', '{"a": 1}'::jsonb, 'body', 2, now())$$,
  'when its lease is over a row comes back');

reset role;
insert into public.push_notifications (device_token, title, priority, next_attempt_at, expires_at)
  select 'token', 'long over', case n % 2 when 0 then 'high' else 'normal' end, now() - interval '1 h', now() - interval '1 min'
    from generate_series(1, 2200) n;
insert into public.push_notifications (device_token, title, priority) values ('token', 'behind them', 'normal'), ('token', 'behind them', 'high');
set local role service_role;
select results_eq('select title from public.fetch_pending_pushes(10)', array['behind them', 'behind them'],
  'any number of pushes that are past their time do not keep others from being sent');
reset role;
select is(count(*)::integer, 2000, 'and are put aside, so many at a time') from public.push_notifications where title = 'long over' and status = 'expired';
set local role service_role;

select throws_ok('select public.fetch_pending_pushes(0)', '22023', 'p_limit must be from 1 to 1000', 'no less than 1');
select throws_ok('select public.fetch_pending_pushes(1001)', '22023', 'p_limit must be from 1 to 1000', 'no more than 1000');
select throws_ok('select public.fetch_pending_pushes(null)', '22023', null, 'not null');
set local role authenticated;
select throws_ok('select public.fetch_pending_pushes()', '42501', null, 'not for users');

select * from finish();
rollback;
