-- Lets one batch of waiting rows expire in a copy of a database. It returns how many rows it found, and how many have
-- expired. The numbers differ if a trigger of the application keeps a row as it is.
--
-- The ids are an array, because for a join Postgres may read the index from its beginning, through the whole history.
--
-- The statement waits for locked rows and does not skip them, because the caller serves the database when it finds no
-- more rows.
with waiting as materialized (
  select id
    from public.push_notifications
    where next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')
      and (%(known_too)s or not exists (
        select from push_listener.served
          where (system_identifier, database_oid, address) = (%(system)s, %(database)s, %(address)s)))
    order by (case priority::text when 'high' then 0 else 1 end), next_attempt_at
    limit %(batch)s
    for update
), done as (
  update public.push_notifications p
    set status = 'expired', next_attempt_at = null, error_code = %(code)s, last_error = %(reason)s,
        updated_at = pg_catalog.now()
    where p.id = any(array(select id from waiting))
    returning p.next_attempt_at
)
select (select pg_catalog.count(*) from waiting) as found,
       (select pg_catalog.count(*) from done where next_attempt_at is null) as expired
