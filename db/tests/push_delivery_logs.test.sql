begin;
select plan(5);
delete from public.push_notifications; -- taken back at the end

select col_type_is('public', 'push_delivery_logs', 'id', 'uuid', 'a log has a UUID');
insert into public.push_notifications (id, device_token, title) values ('00000000-0000-0000-0000-000000000001', 't', 't');
insert into public.push_delivery_logs (push_id, status) values ('00000000-0000-0000-0000-000000000001', 'sent');
select results_eq(
  $$select id is not null, details from public.push_delivery_logs$$,
  $$values (true, '{}'::jsonb)$$, 'which it need not be given, nor details');
select fk_ok('public', 'push_delivery_logs', 'push_id', 'public', 'push_notifications', 'id');
select throws_ok(
  $$insert into public.push_delivery_logs (push_id, status) values ('00000000-0000-0000-0000-000000000002', 'sent')$$,
  '23503', null, 'no log is of a push that does not exist');
delete from public.push_notifications;
select is_empty('select from public.push_delivery_logs', 'a log ends with its push');

select * from finish();
rollback;
