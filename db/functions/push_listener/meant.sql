-- revision 3
create or replace function push_listener.meant()
  returns table (kind text, object text, part text, role text, privilege text)
  language sql stable rows 200 set search_path = pg_catalog, pg_temp
as $$
  with meant(kind, name, role, privileges, columns) as (
    values
      ('table', 'public.push_notifications', 'service_role', '{select,insert,update,delete}'::text[], '{""}'::text[]),
      ('table', 'public.push_devices', 'service_role', '{select,insert,update,delete}', '{""}'),
      ('table', 'public.push_delivery_logs', 'service_role', '{select,insert,update,delete}', '{""}'),
      ('table', 'public.telemetry_logs', 'service_role', '{select,insert,update,delete}', '{""}'),
      ('table', 'public.push_recipients', 'service_role', '{select}', '{""}'),

      -- ctid: the place of a row in the table, by which long lists go on.
      ('table', 'public.push_notifications', 'push_listener', '{select}',
       push_listener.columns('push_notifications') || '{ctid}'::text[]),
      ('table', 'public.push_notifications', 'push_listener', '{update}',
       '{status,next_attempt_at,retry_count,last_retry_at,delivery_attempts,last_error,error_code,fcm_message_id,
         claimed_by,lost_claims,push_first_due_at,sent_at,updated_at}'),
      ('table', 'public.push_delivery_logs', 'push_listener', '{select,insert}', '{push_id,device_token,status,details}'),
      ('table', 'public.push_delivery_logs', 'push_listener', '{select}', '{created_at}'),
      ('table', 'public.push_recipients', 'push_listener', '{select}', '{""}'),
      ('table', 'public.push_devices', 'push_listener', '{select}', '{token,user_id,platform,disabled_at}'),
      ('schema', 'push_listener', 'push_listener', '{usage}', '{""}'),
      ('function', 'push_listener.drift()', 'push_listener', '{execute}', '{""}'),
      ('function', 'push_listener.api()', 'push_listener', '{execute}', '{""}'),
      ('table', 'push_listener.migrations', 'push_listener', '{select}', '{""}'),
      ('table', 'push_listener.functions', 'push_listener', '{select}', '{""}'),
      ('table', 'push_listener.workers', 'push_listener', '{select}', '{""}'),
      ('table', 'push_listener.workers', 'push_listener', '{insert}', '{id,name,incarnation}'),
      ('table', 'push_listener.workers', 'push_listener', '{update}', '{stopped_at,guarded,lost}'),
      ('function', 'push_listener.unclaimable(integer,uuid[],integer,double precision,text)', 'push_listener', '{execute}', '{""}'),
      ('table', 'push_listener.unwritable_rows', 'push_listener', '{select,delete}', '{""}'),
      ('table', 'push_listener.unwritable_rows', 'push_listener', '{insert}', '{push_id,statement,code,until}'),
      ('table', 'push_listener.unwritable_rows', 'push_listener', '{update}',
       '{statement,code,times,noted_at,until}'),
      ('table', 'push_listener.lock_holders', 'push_listener', '{select}', '{""}'),
      ('function', 'push_listener.is_alive(integer)', 'push_listener', '{execute}', '{""}'),
      ('table', 'push_listener.shared_quota', 'push_listener', '{select}', '{""}'),
      ('table', 'push_listener.shared_quota', 'push_listener', '{update}', '{fraction,reduced_at}'),
      ('function', 'push_listener.daily_totals(integer)', 'push_listener', '{execute}', '{""}'),
      ('table', 'push_listener.served', 'push_listener', '{select}', '{""}'),
      ('table', 'push_listener.served', 'push_listener', '{insert}',
       '{system_identifier,database_oid,address,database_name}'),
      ('table', 'push_listener.actions', 'push_listener', '{select}', '{""}'),
      ('function', 'push_listener.ended_by_code(integer)', 'push_listener', '{execute}', '{""}'),

      ('schema', 'push_listener', 'push_listener_operator', '{usage}', '{""}'),
      ('table', 'push_listener.actions', 'push_listener_operator', '{select}', '{""}'),
      ('function', 'push_listener.ended_by_code(integer)', 'push_listener_operator', '{execute}', '{""}'),
      ('function', 'push_listener.operator_requeue(uuid[],timestamptz,text,text,jsonb,uuid)', 'push_listener_operator',
       '{execute}', '{""}'),
      ('function', 'push_listener.operator_cancel(uuid[],timestamptz,text,text,jsonb,uuid)', 'push_listener_operator',
       '{execute}', '{""}'),
      ('function', 'push_listener.operator_reveal(uuid,text)', 'push_listener_operator', '{execute}', '{""}'),
      ('function', 'push_listener.operator_send(text,uuid,text,text,text)', 'push_listener_operator', '{execute}', '{""}')
    union all
    select 'function', a.function, r.role, '{execute}', '{""}'
      from push_listener.api() a, pg_catalog.unnest(a.roles) r(role)
    union all
    -- Users see their own pushes, the logs of these, and their devices.
    select 'table', 'public.' || t.relation, 'authenticated', '{select}',
           case when not push_listener.adopted(t.relation) then '{""}'
                else array(
                  select c from pg_catalog.unnest(push_listener.columns(t.relation)) c
                    where not exists (select from push_listener.adoption_record b
                                        where b.kind = 'column' and b.relation = t.relation and b.name = c)) end
      from (values ('push_notifications'), ('push_delivery_logs'), ('push_devices')) t(relation)
      where not push_listener.adopted(t.relation) or push_listener.shows_own_rows(t.relation)
    union all
    -- An adopted table may number its rows with a sequence, which needs a privilege of its own.
    select distinct 'sequence', s.oid::regclass::text, r.rolname, '{usage}'::text[], '{""}'::text[]
      from push_listener.guarded() t
      join pg_catalog.pg_attrdef def on def.adrelid = t.relation
      join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_attrdef'::regclass and d.objid = def.oid
                                     and d.refclassid = 'pg_catalog.pg_class'::regclass
      join pg_catalog.pg_class s on s.oid = d.refobjid and s.relkind = 'S'
      join pg_catalog.pg_roles r on r.rolname = 'service_role'
        or r.rolname = 'push_listener' and t.relation = pg_catalog.to_regclass('public.push_delivery_logs')
        or exists (
          select from push_listener.kept() k
            where k.privilege = 'insert' and k.role = r.rolname
              and t.relation = pg_catalog.to_regclass(pg_catalog.format('public.%I', k.relation)))
  )
  select m.kind,
         case m.kind when 'function' then pg_catalog.to_regprocedure(m.name)::text
                     when 'schema' then m.name
                     else pg_catalog.to_regclass(m.name)::text end,
         c.part, m.role, p.privilege
    from meant m, pg_catalog.unnest(m.privileges) p(privilege), pg_catalog.unnest(m.columns) c(part)
    where exists (select from pg_catalog.pg_roles r where r.rolname = m.role)
      -- A later migration creates the object, or "migrate --down" has dropped it.
      and case m.kind when 'function' then pg_catalog.to_regprocedure(m.name) is not null
                      -- The role may be there, made by another database, before the step that gives it work.
                      when 'schema' then m.role <> 'push_listener_operator'
                                         or pg_catalog.to_regclass('push_listener.actions') is not null
                      else pg_catalog.to_regclass(m.name) is not null
                        and (c.part = '' or exists (
                          select from pg_catalog.pg_attribute a
                            where a.attrelid = pg_catalog.to_regclass(m.name) and a.attname = c.part
                              and not a.attisdropped)) end
$$;
revoke all on function push_listener.meant from public;
comment on function push_listener.meant is
  'The privileges that roles other than the owner should have on objects of push-listener.';
