-- revision 1
-- Users who could read every column of a table may rely on "select *", which needs every column that the table has
-- now. "push-listener migrate --share-new-columns" lets them read the new columns as well, in the rows that the
-- application's own policies show them.
create or replace function push_listener.share_new_columns() returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  update push_listener.adoption_record k
    set definition = null
    where k.kind = 'keep' and k.name = 'authenticated select'
      and not exists (
        select from push_listener.adoption_record c
          where c.kind = 'column' and c.relation = k.relation and c.name <> all (k.definition::text[]));
  perform push_listener.grant_kept();
end
$$;
revoke all on function push_listener.share_new_columns from public;
comment on function push_listener.share_new_columns is
  'Lets authenticated read the columns that push-listener added to tables of which it could read every column.';
