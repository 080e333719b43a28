-- Everything about one push except its text. Other texts are cut as in line.sql.
select {line}, p.user_id, pg_catalog.left(p.collapse_key::text, 201) as collapse_key,
    pg_catalog.left(p.idempotency_key::text, 201) as idempotency_key,
    extract(epoch from p.expires_at)::float8 as expires_at, extract(epoch from p.sent_at)::float8 as sent_at,
    extract(epoch from p.delivered_at)::float8 as delivered_at,
    extract(epoch from p.last_retry_at)::float8 as last_retry_at,
    pg_catalog.left(p.fcm_message_id::text, 513) as fcm_message_id, p.claimed_by, coalesce(p.delivery_attempts, 0) as delivery_attempts,
    coalesce(p.lost_claims, 0) as lost_claims, pg_catalog.concat_ws(' ', u.statement, u.code) as unwritable
  from public.push_notifications p
  left join push_listener.unwritable_rows u on u.push_id = p.id
  where p.id = %(id)s::uuid
