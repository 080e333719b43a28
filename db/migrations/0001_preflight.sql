-- Looks before anything is touched: what exists already is written down, and what cannot be adopted stops here.
--
-- push_listener is this project's own schema: it is not exposed by PostgREST, and nothing in it is for applications.

create table push_listener.before (
  kind text not null,        -- 'table', 'column', 'check', 'view', 'function'
  relation text not null,
  name text not null default '',
  definition text,
  primary key (kind, relation, name)
);
comment on table push_listener.before is
  'What the application had before push-listener came: the way back leaves all of it standing.';

do $$
declare
  problems text[];
begin
  select array_agg(format('%I.%s is %s, but has to be %s', want.relation, quote_ident(want.name),
                          format_type(a.atttypid, a.atttypmod), array_to_string(want.types, ' or '))
                   order by want.relation, want.name)
    into problems
    from (values
      ('push_notifications', 'id', '{uuid}'::text[]),
      ('push_notifications', 'user_id', '{uuid}'),
      ('push_notifications', 'device_token', '{text,varchar}'),
      ('push_notifications', 'topic', '{text,varchar}'),
      ('push_notifications', 'condition', '{text,varchar}'),
      ('push_notifications', 'title', '{text,varchar}'),
      ('push_notifications', 'body', '{text,varchar}'),
      ('push_notifications', 'data', '{jsonb,json}'),
      ('push_notifications', 'channel', '{text,varchar}'),
      ('push_notifications', 'priority', '{text,varchar}'),
      ('push_notifications', 'image', '{text,varchar}'),
      ('push_notifications', 'options', '{jsonb}'),
      ('push_notifications', 'expires_at', '{timestamptz}'),
      ('push_notifications', 'collapse_key', '{text,varchar}'),
      ('push_notifications', 'idempotency_key', '{text,varchar}'),
      ('push_notifications', 'next_attempt_at', '{timestamptz}'),
      ('push_notifications', 'status', '{text,varchar}'),
      ('push_notifications', 'retry_count', '{int2,int4,int8}'),
      ('push_notifications', 'last_retry_at', '{timestamptz}'),
      ('push_notifications', 'delivery_attempts', '{int4,int8}'),
      ('push_notifications', 'last_error', '{text}'),
      ('push_notifications', 'error_code', '{text}'),
      ('push_notifications', 'fcm_message_id', '{text}'),
      ('push_notifications', 'claimed_by', '{int4}'),
      ('push_notifications', 'sent_at', '{timestamptz}'),
      ('push_notifications', 'delivered_at', '{timestamptz}'),
      ('push_notifications', 'created_at', '{timestamptz}'),
      ('push_notifications', 'updated_at', '{timestamptz}'),
      ('push_delivery_logs', 'push_id', '{uuid}'),
      ('push_delivery_logs', 'device_token', '{text,varchar}'),
      ('push_delivery_logs', 'status', '{text,varchar}'),
      ('push_delivery_logs', 'details', '{jsonb}'),
      ('push_delivery_logs', 'created_at', '{timestamptz}'),
      ('push_devices', 'token', '{text}'),
      ('push_devices', 'user_id', '{uuid}'),
      ('push_devices', 'platform', '{text,varchar}'),
      ('push_devices', 'created_at', '{timestamptz}'),
      ('push_devices', 'updated_at', '{timestamptz}'),
      ('push_devices', 'disabled_at', '{timestamptz}'),
      ('push_devices', 'disabled_reason', '{text}'),
      ('telemetry_logs', 'type', '{text,varchar}'),
      ('telemetry_logs', 'message', '{text,varchar}'),
      ('telemetry_logs', 'meta', '{jsonb}'),
      ('telemetry_logs', 'timestamp', '{timestamptz}'),
      ('telemetry_logs', 'user_id', '{uuid}'),
      ('telemetry_logs', 'batch_id', '{uuid}'),
      ('telemetry_logs', 'processed_at', '{timestamptz}'),
      ('telemetry_logs', 'created_at', '{timestamptz}')
    ) as want(relation, name, types)
    join pg_class c on c.relname = want.relation and c.relnamespace = 'public'::regnamespace
    join pg_attribute a on a.attrelid = c.oid and a.attname = want.name and not a.attisdropped
    where a.atttypid <> all (select t::regtype from unnest(want.types) as t);

  -- A table of ours cannot be put where a view (or anything else) of that name stands.
  select problems || array_agg(format('%I is a %s, but has to be an ordinary table', c.relname,
           case c.relkind when 'v' then 'view' when 'm' then 'materialized view' when 'f' then 'foreign table'
                          else 'relation of kind ' || c.relkind::text end))
    into problems
    from pg_class c
    where c.relnamespace = 'public'::regnamespace
      and c.relname in ('push_notifications', 'push_delivery_logs', 'push_devices', 'telemetry_logs')
      and c.relkind not in ('r', 'p')
    having count(*) > 0 or problems is not null;

  if to_regclass('public.push_notifications') is not null and not exists (
    select from pg_index i
      join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0] and i.indnkeyatts = 1
      where i.indrelid = to_regclass('public.push_notifications') and i.indisunique and i.indpred is null
        and a.attname = 'id'
  ) then
    problems := problems || array['push_notifications.id exists without a primary key or unique index on it alone'::text];
  end if;
  if to_regclass('public.push_recipients') is not null and (
    select count(*) from pg_attribute a
      where a.attrelid = to_regclass('public.push_recipients') and not a.attisdropped and a.attnum > 0
        and (a.attname, a.atttypid::regtype::text) in
            (('user_id', 'uuid'), ('token', 'text'), ('platform', 'text'))
  ) <> 3 then
    problems := problems || array['push_recipients exists without the columns user_id uuid, token text, platform text'::text];
  end if;

  if problems is not null then
    raise exception using
      errcode = 'object_not_in_prerequisite_state',
      message = format('this database cannot be adopted as it is: %s', array_to_string(problems, '; ')),
      hint = 'Nothing has been changed. Alter or rename what is named, then run push-listener migrate again.';
  end if;
end
$$;

insert into push_listener.before (kind, relation)
select 'table', c.relname
  from pg_class c
  where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')
    and c.relname in ('push_notifications', 'push_delivery_logs', 'push_devices', 'telemetry_logs');

insert into push_listener.before (kind, relation, name, definition)
select 'column', c.relname, a.attname, case when a.attnotnull then 'not null' end
  from push_listener.before b
  join pg_class c on c.relname = b.relation and c.relnamespace = 'public'::regnamespace
  join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
  where b.kind = 'table';

-- Checks on a status alone: those are widened, and put back on the way back.
insert into push_listener.before (kind, relation, name, definition)
select 'check', c.relname, k.conname, pg_get_expr(k.conbin, k.conrelid)
  from pg_constraint k
  join pg_class c on c.oid = k.conrelid and c.relnamespace = 'public'::regnamespace
  join pg_attribute a on a.attrelid = c.oid and a.attname = 'status'
  where k.contype = 'c' and k.conkey = array[a.attnum]
    and c.relname in ('push_notifications', 'push_delivery_logs');

insert into push_listener.before (kind, relation)
select 'view', c.relname
  from pg_class c
  where c.relnamespace = 'public'::regnamespace and c.relname = 'push_recipients';
