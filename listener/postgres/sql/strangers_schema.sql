-- The owner of the schema push_listener, if nothing in the schema may be read.
--
-- Any role that may create schemas can create one of this name first, with a view in place of the table of migrations.
-- To read the view would run the role's code with the rights of this session. So the owner must be a role that could do
-- as much without the schema: a superuser, the owner of the database, or a role that has the rights of this session.
-- For a listener with a role of its own it may also be the owner of the queue.
select o.rolname::text
  from pg_catalog.pg_namespace n
  join pg_catalog.pg_roles o on o.oid = n.nspowner
  join pg_catalog.pg_roles me on me.rolname = current_user
  join pg_catalog.pg_database d on d.datname = pg_catalog.current_database()
  where n.nspname = 'push_listener'
    and not (o.rolsuper or o.oid = d.datdba or pg_catalog.pg_has_role(o.oid, me.oid, 'usage'))
    and not (not me.rolsuper
             and coalesce(pg_catalog.pg_has_role(pg_catalog.to_regrole('push_listener'), 'usage'), false)
             -- to_regclass() raises an error where this role may not use the schema public.
             and exists (select from pg_catalog.pg_class q
                           join pg_catalog.pg_namespace p on p.oid = q.relnamespace
                           where p.nspname = 'public' and q.relname = 'push_notifications'
                             and q.relowner = o.oid))
