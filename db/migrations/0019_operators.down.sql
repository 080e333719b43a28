-- migrate: loses select format('the record of what operators did (push_listener.actions) has %s rows', count(*)) from push_listener.actions having count(*) > 0
-- The role push_listener_operator stays, without a privilege in this database, as push_listener does.
drop function if exists push_listener.ended_by_code(integer);
drop function if exists push_listener.operator_send(text, uuid, text, text, text);
drop function if exists push_listener.operator_reveal(uuid, text);
drop function if exists push_listener.operator_cancel(uuid[], timestamptz, text, text, jsonb, uuid);
drop function if exists push_listener.operator_requeue(uuid[], timestamptz, text, text, jsonb, uuid);
drop function if exists push_listener.check_action(text, text, jsonb, uuid[]);
drop table if exists push_listener.actions;
do $$
begin
  if exists (select from pg_roles where rolname = 'push_listener_operator') then
    revoke all on schema push_listener from push_listener_operator;
  end if;
end
$$;
