-- Where this database has been served: a copy of it (a dump, a branch, a restored backup) holds these rows too, but is
-- found under another identity. Then the listener does not send what waits until somebody decides. See docs/restore.md.

create table push_listener.served (
  system_identifier text not null,
  database_oid bigint not null,
  address text not null,
  database_name text not null,
  first_served_at timestamptz not null default now(),
  primary key (system_identifier, database_oid, address)
);
comment on table push_listener.served is
  'Every identity under which a listener has served this database. Without a row here that fits, what waits is not sent.';
comment on column push_listener.served.system_identifier is
  'Of the database cluster (pg_control_system); empty where the listener may not read it. A dump changes it, a physical copy keeps it.';
comment on column push_listener.served.address is
  'Where the listener reaches the database, in a form that all ways to it share; or the setting INSTALLATION.';

select push_listener.secure();
