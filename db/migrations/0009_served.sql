-- Under which identities listeners have served this database. A copy of the database (a dump, a branch, a restored
-- backup) holds these rows too, but has another identity. A listener then sends nothing until an operator decides
-- about the pushes that wait. See docs/restore.md.

create table push_listener.served (
  system_identifier text not null,
  database_oid bigint not null,
  address text not null,
  database_name text not null,
  first_served_at timestamptz not null default now(),
  primary key (system_identifier, database_oid, address)
);
comment on table push_listener.served is
  'Every identity under which a listener has served this database. Under any other identity, waiting pushes are not sent.';
comment on column push_listener.served.system_identifier is
  'Identifies the database cluster (pg_control_system); empty if the listener may not read it. A dump changes it, a physical copy keeps it.';
comment on column push_listener.served.address is
  'Where the listener reaches the database, in a form common to all ways to it; or the setting INSTALLATION.';
