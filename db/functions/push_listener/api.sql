-- revision 2
-- The functions of schema public: which roles may call each, and whether it runs with its owner's rights (as_owner).
-- apply_privileges(), drift() and the command doctor read this list.
create or replace function push_listener.api() returns table (function text, roles text[], as_owner boolean)
  language sql immutable rows 16 set search_path = pg_catalog, pg_temp
as $$
  values
    ('public.fetch_pending_pushes(integer)', '{service_role}'::text[], true),
    ('public.mark_push_sent(uuid)', '{service_role}', true),
    ('public.mark_push_failed(uuid, text)', '{service_role}', true),
    ('public.enqueue_push(uuid, text, text, text, text, text, jsonb, text, text, text, jsonb, text, text, timestamptz, '
     'timestamptz, text)', '{service_role}', false),
    ('public.enqueue_pushes(jsonb[])', '{service_role}', false),
    ('public.cancel_push(uuid)', '{service_role}', false),
    ('public.requeue_pushes(uuid[], text, timestamptz, integer, text, uuid, timestamptz)', '{service_role}', true),
    ('public.get_push_delivery_stats(integer)', '{service_role}', true),
    ('public.get_push(uuid)', '{authenticated,service_role}', true),
    ('public.record_delivery_receipt(uuid, text, text, jsonb, timestamptz)', '{authenticated,service_role}', true),
    ('public.record_delivery_receipts(jsonb[])', '{authenticated,service_role}', true),
    ('public.register_device(text, text, uuid)', '{authenticated,service_role}', true),
    ('public.unregister_device(text)', '{authenticated,service_role}', true),
    ('public.flush_telemetry(jsonb[], uuid)', '{authenticated,service_role}', true),
    ('public.push_is_service(name)', '{service_role}', false),
    ('public.push_disable_token(text, text)', '{service_role,push_listener}', true)
$$;
revoke all on function push_listener.api from public;
comment on function push_listener.api is 'The functions of schema public, and the roles that may call each.';
