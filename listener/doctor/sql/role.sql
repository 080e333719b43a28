-- The role of this session, and what row-level security does to it. A role to which no policy applies sees no row, and
-- Postgres raises no error.
select current_user::text as name, pg_catalog.quote_ident(current_user) as quoted,
       exists (select from pg_catalog.pg_roles where rolname = 'push_listener') as has_group,
       coalesce(pg_catalog.pg_has_role(pg_catalog.to_regrole('push_listener')::oid, 'usage'), false) as is_member,
       coalesce(pg_catalog.pg_has_role(pg_catalog.to_regrole('push_listener')::oid, 'member'), false) as is_in_group,
       pg_catalog.current_setting('server_version_num')::integer >= 160000 as inherits_by_grant,
       coalesce((select pg_catalog.bool_or(pg_catalog.row_security_active(c.oid))
                   from pg_catalog.pg_class c
                   join pg_catalog.pg_namespace n on n.oid = c.relnamespace
                   where n.nspname = 'public'
                     and c.relname in ('push_notifications', 'push_delivery_logs', 'push_devices')), false)
         as sees_policies,
       coalesce((select pg_catalog.has_table_privilege(c.oid, 'delete')
                   from pg_catalog.pg_class c
                   join pg_catalog.pg_namespace n on n.oid = c.relnamespace
                   where n.nspname = 'public' and c.relname = 'push_notifications'), true) as may_delete
