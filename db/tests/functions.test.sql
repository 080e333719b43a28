-- What holds for every function in public: whose rights it has, a search_path that nobody else can write to, and who may
-- call it.
begin;
select plan(13 * 6 + 1);

create temporary table wanted (name text, arguments text, authenticated boolean) on commit drop;
insert into wanted values
  ('fetch_pending_pushes', 'p_limit integer', false),
  ('mark_push_sent', 'p_push_id uuid', false),
  ('mark_push_failed', 'p_push_id uuid, p_error text', false),
  ('record_delivery_receipt', 'p_push_id uuid, p_device_token text, p_status text, p_details jsonb, p_at timestamp with time zone', true),
  ('record_delivery_receipts', 'p_receipts jsonb[]', true),
  ('get_push', 'p_push_id uuid', true),
  ('enqueue_pushes', 'p_pushes jsonb[]', false),
  ('flush_telemetry', 'p_payloads jsonb[], p_batch_id uuid', true),
  ('enqueue_push', 'p_user_id uuid, p_device_token text, p_topic text, p_condition text, p_title text, p_body text, p_data jsonb, p_channel text, p_priority text, p_image text, p_options jsonb, p_collapse_key text, p_idempotency_key text, p_expires_at timestamp with time zone, p_send_at timestamp with time zone, p_fid text', false),
  ('register_device', 'p_token text, p_platform text, p_user_id uuid', true),
  ('unregister_device', 'p_token text', true),
  ('cancel_push', 'p_push_id uuid', false),
  ('requeue_pushes', 'p_ids uuid[], p_error_code text, p_since timestamp with time zone, p_limit integer, p_status text, p_user_id uuid, p_until timestamp with time zone', false);

create temporary view found as
  select w.name, w.authenticated, p.oid, p.prosecdef, p.proconfig
    from wanted w
    left join pg_proc p on p.pronamespace = 'public'::regnamespace and p.proname = w.name
      and pg_get_function_identity_arguments(p.oid) = w.arguments;

select isnt(oid, null, name || ' has the arguments that PostgREST calls by name') from found order by name;
select is(prosecdef, name not in ('enqueue_push', 'enqueue_pushes', 'cancel_push'),
          name || ' runs with the rights of its ' || case when prosecdef then 'owner' else 'caller' end) from found order by name;
select ok('search_path=pg_catalog, pg_temp' = any (proconfig), name || ' looks names up in pg_catalog') from found order by name;
select ok(not has_function_privilege('anon', oid, 'execute'), name || ' is not for anon') from found order by name;
select is(has_function_privilege('authenticated', oid, 'execute'), authenticated,
          name || case when authenticated then ' is' else ' is not' end || ' for authenticated') from found order by name;
select ok(has_function_privilege('service_role', oid, 'execute'), name || ' is for service_role') from found order by name;

select is_empty(
  $$select p.oid::regprocedure from pg_proc p
      where p.pronamespace = 'push_listener'::regnamespace
        and (has_function_privilege('anon', p.oid, 'execute') or has_function_privilege('authenticated', p.oid, 'execute'))$$,
  'nothing in push_listener is for the API roles');

select * from finish();
rollback;
