-- What an application, a phone and a worker of somebody else's may call, through PostgREST or in SQL.
--
-- Every function in public runs with its owner's rights and an empty search_path, checks what it is given, and says
-- who may call it in one line, push_listener.allow(...). Refusals carry the SQLSTATE from which PostgREST makes the
-- HTTP status: 22023 -> 400, 42501 -> 403, PT404 -> 404. No text of a refusal repeats a token or a payload.

-- Who may call what -----------------------------------------------------------------------------------------------

create function push_listener.allow(function regprocedure, variadic roles text[]) returns void
  language plpgsql set search_path = ''
as $$
declare
  role text;
begin
  -- PUBLIC has execute on every new function; older Supabase projects grant it to the three roles as well.
  execute pg_catalog.format('revoke all on function %s from public', function);
  for role in
    select r.rolname from pg_catalog.pg_roles r where r.rolname in ('anon', 'authenticated', 'service_role')
  loop
    execute pg_catalog.format('revoke all on function %s from %I', function, role);
  end loop;
  for role in
    select r.rolname from pg_catalog.pg_roles r where r.rolname = any (roles)
  loop
    execute pg_catalog.format('grant execute on function %s to %I', function, role);
  end loop;
end
$$;
revoke all on function push_listener.allow(regprocedure, text[]) from public;
comment on function push_listener.allow(regprocedure, text[]) is
  'Makes a function executable by its owner and these roles, as far as they exist, and by nobody else.';
