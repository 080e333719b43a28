-- revision 1
-- Whether "migrate --down" drops push_notifications.fid: push-listener has added it, and the table does not stay as it is.
create or replace function push_listener.drops_fid() returns boolean
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select push_listener.is_as_left('push_notifications') and not push_listener.keeps('push_notifications')
    and exists (
      select from pg_catalog.pg_attribute a
        where a.attrelid = pg_catalog.to_regclass('public.push_notifications') and a.attname = 'fid' and not a.attisdropped)
    and not exists (
      select from push_listener.adoption_record b
        where b.kind = 'column' and b.relation = 'push_notifications' and b.name = 'fid')
$$;
revoke all on function push_listener.drops_fid from public;
