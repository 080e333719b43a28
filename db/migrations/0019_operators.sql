-- What people do with pushes, on the page and with the commands: put back, cancel, reveal, send a test push. Each action
-- and its record are one transaction. None of it is in schema public, so PostgREST does not offer it.
--
-- A login may act if it is a member of push_listener_operator. The role push_listener reads the record, and gains
-- nothing else.

do $$
begin
  if not exists (select from pg_roles where rolname = 'push_listener_operator') then
    create role push_listener_operator nologin;
    comment on role push_listener_operator is
      'Can requeue, cancel, reveal and send pushes, each time with a record in push_listener.actions, and nothing else.';
  end if;
exception
  when insufficient_privilege then
    raise warning 'the role push_listener_operator was not created, as % may not create roles: until it exists, only the '
                  'owner of the tables acts on pushes from the page and the commands. To have the role, let an '
                  'administrator run "create role push_listener_operator nologin", then the owner "select '
                  'push_listener.apply_privileges()"', current_user;
  when duplicate_object or unique_violation then
    null;  -- another database of this server is being migrated at the same time
end
$$;

create table push_listener.actions (
  id bigint generated always as identity primary key,
  at timestamptz not null default now(),
  login text not null default session_user check (length(login) <= 200),
  who text not null check (length(who) between 1 and 200),
  what text not null check (what in ('requeue', 'cancel', 'reveal', 'send')),
  filter jsonb,
  reason text check (length(reason) <= 1000),
  affected integer not null check (affected >= 0),
  ids uuid[] not null check (cardinality(ids) <= 1000),
  run uuid
);
create index actions_run on push_listener.actions (run) where run is not null;
alter table push_listener.actions enable row level security;

comment on table push_listener.actions is
  'What people did with pushes. Written by the operator_ functions in the transaction of the action; no role but the owner can change it, and no purge deletes it.';
comment on column push_listener.actions.login is 'The database login that acted, as Postgres knows it.';
comment on column push_listener.actions.who is 'The person, as the login tells: a name of ACTION_TOKENS, or cli: and the user of the machine.';
comment on column push_listener.actions.filter is 'What the person searched for, if the action was on all that match.';
comment on column push_listener.actions.affected is 'How many pushes were changed, revealed or made.';
comment on column push_listener.actions.ids is 'The pushes that were changed, revealed or made.';
comment on column push_listener.actions.run is 'The same for all batches of one action on all that match.';

\ir ../functions/push_listener/check_action.sql
\ir ../functions/push_listener/operator_requeue.sql
\ir ../functions/push_listener/operator_cancel.sql
\ir ../functions/push_listener/operator_reveal.sql
\ir ../functions/push_listener/operator_send.sql
\ir ../functions/push_listener/ended_by_code.sql

-- apply_privileges() has to know the new role and the new table when the step "clients" calls it. A database that the
-- Supabase CLI migrates would otherwise get these functions after all steps.
\ir ../functions/push_listener/meant.sql
\ir ../functions/push_listener/policies.sql
\ir ../functions/push_listener/privilege_changes.sql
\ir ../functions/push_listener/policy_changes.sql
\ir ../functions/push_listener/drift.sql
