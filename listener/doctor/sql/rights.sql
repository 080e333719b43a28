-- The privileges that "push-listener run" needs and the role of this session does not have. The list repeats what
-- push_listener.meant() says for the role push_listener, because only the owner may call that function. A test compares
-- the two.
with needed(kind, name, privilege, columns) as (
  values
    ('schema', 'public', 'usage', '{}'::text[]),
    ('schema', 'push_listener', 'usage', '{}'),
    ('table', 'public.push_notifications', 'select',
     '{id,user_id,device_token,fid,topic,condition,title,body,data,channel,priority,image,options,expires_at,
       collapse_key,idempotency_key,delivered_at,created_at,next_attempt_at,status,retry_count,last_retry_at,delivery_attempts,
       last_error,error_code,fcm_message_id,claimed_by,lost_claims,push_first_due_at,sent_at,
       updated_at,ctid}'),
    ('table', 'public.push_notifications', 'update',
     '{next_attempt_at,status,retry_count,last_retry_at,delivery_attempts,last_error,error_code,fcm_message_id,
       claimed_by,lost_claims,push_first_due_at,sent_at,updated_at}'),
    ('table', 'public.push_delivery_logs', 'select', '{push_id,device_token,status,details,created_at}'),
    ('table', 'public.push_delivery_logs', 'insert', '{push_id,device_token,status,details}'),
    ('table', 'public.push_devices', 'select', '{token,user_id,platform,disabled_at}'),
    ('table', 'public.push_recipients', 'select', '{}'),
    ('function', 'public.push_disable_token(text,text)', 'execute', '{}'),
    ('table', 'push_listener.migrations', 'select', '{}'),
    ('table', 'push_listener.functions', 'select', '{}'),
    ('table', 'push_listener.workers', 'select', '{}'),
    ('table', 'push_listener.workers', 'insert', '{id,name,incarnation}'),
    ('table', 'push_listener.workers', 'update', '{stopped_at,guarded,lost}'),
    ('table', 'push_listener.lock_holders', 'select', '{}'),
    ('table', 'push_listener.shared_quota', 'select', '{}'),
    ('table', 'push_listener.shared_quota', 'update', '{fraction,reduced_at}'),
    ('table', 'push_listener.served', 'select', '{}'),
    ('table', 'push_listener.served', 'insert', '{system_identifier,database_oid,address,database_name}'),
    ('table', 'push_listener.unwritable_rows', 'select', '{}'),
    ('table', 'push_listener.unwritable_rows', 'insert', '{push_id,statement,code,until}'),
    ('table', 'push_listener.unwritable_rows', 'update', '{statement,code,times,noted_at,until}'),
    ('table', 'push_listener.unwritable_rows', 'delete', '{}'),
    ('function', 'push_listener.drift()', 'execute', '{}'),
    ('function', 'push_listener.api()', 'execute', '{}'),
    ('function', 'push_listener.daily_totals(integer)', 'execute', '{}'),
    ('table', 'push_listener.actions', 'select', '{}'),
    ('function', 'push_listener.ended_by_code(integer)', 'execute', '{}'),
    ('function', 'push_listener.is_alive(integer)', 'execute', '{}'),
    ('function', 'push_listener.unclaimable(integer,uuid[],integer,double precision,text)', 'execute', '{}')
),
-- pg_class and pg_proc are read directly, because to_regclass() raises an error if the role may not use the schema.
relations as (
  select n.nspname || '.' || c.relname as name, c.oid
    from pg_catalog.pg_class c
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where n.nspname in ('public', 'push_listener') and c.relkind in ('r', 'p', 'v', 'f')
),
functions as (
  select n.nspname || '.' || p.proname || '(' || pg_catalog.replace(pg_catalog.oidvectortypes(p.proargtypes), ', ', ',') || ')' as name,
         p.oid
    from pg_catalog.pg_proc p
    join pg_catalog.pg_namespace n on n.oid = p.pronamespace
    where n.nspname in ('public', 'push_listener')
),
-- Each "case" keeps Postgres from checking a privilege that this kind of object cannot have, which would be an error.
lacking as (
  select w.kind, w.name, w.privilege, '{}'::text[] as columns
    from needed w
    join pg_catalog.pg_namespace n on n.nspname = w.name
    where case when w.kind = 'schema' then not pg_catalog.has_schema_privilege(n.oid, w.privilege) end
  union all
  select w.kind, w.name, w.privilege, '{}'
    from needed w
    join functions f on f.name = w.name
    where case when w.kind = 'function' then not pg_catalog.has_function_privilege(f.oid, w.privilege) end
  union all
  select w.kind, w.name, w.privilege, '{}'
    from needed w
    join relations r on r.name = w.name
    where case when w.kind = 'table' and w.columns = '{}'
               then not pg_catalog.has_table_privilege(r.oid, w.privilege) end
  union all
  select w.kind, w.name, w.privilege, pg_catalog.array_agg(a.attname::text order by a.attnum)
    from needed w
    join relations r on r.name = w.name
    join pg_catalog.pg_attribute a on a.attrelid = r.oid and (a.attnum > 0 or a.attname = 'ctid') and not a.attisdropped
    where case when w.kind = 'table' and a.attname::text = any(w.columns)
               then not pg_catalog.has_column_privilege(r.oid, a.attnum, w.privilege) end
    group by w.kind, w.name, w.privilege
)
select kind, name, privilege, columns from lacking order by kind <> 'schema', name, privilege
