-- For the clients of an application and its phones: many pushes, or many receipts, in one call; telemetry that may be sent
-- again; what has become of a push; and FCM's installation ids (fid) beside its registration tokens.

-- What is in the way -------------------------------------------------------------------------------------------------

do $$
declare
  v_line text;
begin
  select string_agg(o.line, '; ' order by o.line) into v_line
    from (
      select format('there is a function %s, named as one that push-listener makes: drop it, or alter function %1$s rename to ...',
                    p.oid::regprocedure) as line
        from pg_proc p
        where p.pronamespace = 'public'::regnamespace
          and p.proname in ('enqueue_pushes', 'get_push', 'record_delivery_receipts')
      union all
      -- Of the two, the one with the old arguments is push-listener's.
      select format('there is a function %s, with the arguments that push-listener''s own gets now: drop it, or alter function %1$s rename to ...',
                    to_regprocedure(c.new))
        from (values
          ('public.enqueue_push(uuid, text, text, text, text, text, jsonb, text, text, text, jsonb, text, text, timestamptz, timestamptz)',
           'public.enqueue_push(uuid, text, text, text, text, text, jsonb, text, text, text, jsonb, text, text, timestamptz, timestamptz, text)'),
          ('public.requeue_pushes(uuid[], text, timestamptz, integer)',
           'public.requeue_pushes(uuid[], text, timestamptz, integer, text, uuid, timestamptz)'),
          ('public.record_delivery_receipt(uuid, text, text, jsonb)',
           'public.record_delivery_receipt(uuid, text, text, jsonb, timestamptz)'),
          ('public.flush_telemetry(jsonb[])', 'public.flush_telemetry(jsonb[], uuid)')
        ) as c(old, new)
        where to_regprocedure(c.old) is not null and to_regprocedure(c.new) is not null
      union all
      select format('push_notifications.fid is %s, and has to be text: rename it', format_type(a.atttypid, a.atttypmod))
        from pg_attribute a
        where a.attrelid = 'public.push_notifications'::regclass and a.attname = 'fid' and not a.attisdropped
          and (a.atttypid not in ('text'::regtype, 'varchar'::regtype) or a.attgenerated <> '')
    ) o;
  if v_line is not null then
    raise exception using errcode = 'duplicate_object', message = v_line;
  end if;
end
$$;

-- fid ----------------------------------------------------------------------------------------------------------------
--
-- New Firebase SDKs hand out the installation id in place of a registration token, and FCM has a field for each. A push
-- names the one or the other. push_devices and push_recipients hold both in the column token: there the listener tells
-- them by their form.

do $$
begin
  if exists (select from pg_attribute a
               where a.attrelid = 'public.push_notifications'::regclass and a.attname = 'fid' and not a.attisdropped) then
    raise warning 'push_notifications has a column fid, which stays: push-listener sends a row that has a value there to the Firebase installation of that id. If it means something else, rename it and run push-listener migrate again';
    -- It stays when this step is taken back.
    insert into push_listener.adoption_record (kind, relation, name) values ('column', 'push_notifications', 'fid')
      on conflict do nothing;
  end if;
end
$$;

alter table public.push_notifications
  add column if not exists fid text;

do $$
begin
  perform push_listener.adopt('push_notifications', p_optional => '{fid}');
  if not exists (select from push_listener.adoption_record b
                   where b.kind = 'column' and b.relation = 'push_notifications' and b.name = 'fid') then
    comment on column public.push_notifications.fid is
      'The Firebase installation id of one device, as a new SDK hands it out in place of a registration token.';
  end if;
end
$$;

-- Telemetry that may be sent again ---------------------------------------------------------------------------------------

create table push_listener.telemetry_batches (
  user_id uuid not null,
  batch_id uuid not null,
  stored_at timestamptz not null default now(),
  accepted integer not null,
  rejected integer[] not null,
  primary key (user_id, batch_id)
);
create index telemetry_batches_old on push_listener.telemetry_batches (stored_at);
alter table push_listener.telemetry_batches enable row level security;
comment on table push_listener.telemetry_batches is
  'The ids under which callers of flush_telemetry have sent batches in the last seven days, and the answers.';
comment on column push_listener.telemetry_batches.user_id is
  'Whose batch it is, so that no user can take the id of another''s. All services are 00000000-0000-0000-0000-000000000000.';
comment on column push_listener.telemetry_batches.rejected is 'Which elements were rejected, counted from 0.';

-- The functions -----------------------------------------------------------------------------------------------------------

drop function if exists public.enqueue_push(uuid, text, text, text, text, text, jsonb, text, text, text, jsonb, text, text,
                                            timestamptz, timestamptz);
drop function if exists public.requeue_pushes(uuid[], text, timestamptz, integer);
drop function if exists public.record_delivery_receipt(uuid, text, text, jsonb);
drop function if exists public.flush_telemetry(jsonb[]);

\ir ../functions/push_listener/columns.sql
\ir ../functions/public/enqueue_push.sql
\ir ../functions/public/enqueue_pushes.sql
\ir ../functions/public/requeue_pushes.sql
\ir ../functions/public/get_push.sql
\ir ../functions/push_listener/receipt_facts.sql
\ir ../functions/push_listener/record_receipt.sql
\ir ../functions/push_listener/receipt_fault.sql
\ir ../functions/public/record_delivery_receipt.sql
\ir ../functions/public/record_delivery_receipts.sql
\ir ../functions/push_listener/forget_telemetry_use.sql
\ir ../functions/push_listener/telemetry_answer.sql
\ir ../functions/public/flush_telemetry.sql
\ir ../functions/public/fetch_pending_pushes.sql
\ir ../functions/public/mark_push_sent.sql
\ir ../functions/public/mark_push_failed.sql
\ir ../functions/push_listener/drops_fid.sql
\ir ../functions/push_listener/lost_fids.sql

-- apply_privileges() has to know the new functions and the new column now: default privileges may have given users what
-- is new in the schema public.
\ir ../functions/push_listener/api.sql
\ir ../functions/push_listener/meant.sql
\ir ../functions/push_listener/policies.sql

select push_listener.apply_privileges();
