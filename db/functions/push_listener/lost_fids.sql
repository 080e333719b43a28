-- revision 1
-- What "migrate --down" of the step "clients" would lose, in words; no row if nothing would be lost.
create or replace function push_listener.lost_fids() returns setof text
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_count bigint;
begin
  if push_listener.drops_fid() then
    execute 'select count(*) from public.push_notifications where fid is not null' into v_count;
    if v_count > 0 then
      return next pg_catalog.format('push_notifications has %s rows that name their device in fid alone', v_count);
    end if;
  end if;
end
$$;
revoke all on function push_listener.lost_fids from public;
