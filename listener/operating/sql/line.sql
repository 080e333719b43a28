-- What a list shows of a push "p": the fields of PushLine. A registration token or an installation id (fid) leaves the
-- database only as a short hash.
-- Times are read as seconds, because a time may be infinite or outside Python's range of dates. A text may have any
-- length, so one character more than is shown is read, to know whether the text must be cut. left() reads no more of a
-- long text than it returns.
p.id, p.status::text as status, coalesce(p.priority::text, 'normal') as priority,
    case when p.device_token is not null then 'token' when p.fid is not null then 'fid'
         when p.topic is not null then 'topic' when p.condition is not null then 'condition'
         when p.user_id is not null then 'user' else '' end as kind,
    case when p.device_token is not null then
           pg_catalog.concat('token ', pg_catalog.left(pg_catalog.encode(
             pg_catalog.sha256(pg_catalog.convert_to(p.device_token::text, 'UTF8')), 'hex'), 8))
         when p.fid is not null then
           pg_catalog.concat('fid ', pg_catalog.left(pg_catalog.encode(
             pg_catalog.sha256(pg_catalog.convert_to(p.fid::text, 'UTF8')), 'hex'), 8))
         when p.topic is not null then pg_catalog.left(p.topic::text, 201)
         when p.condition is not null then pg_catalog.left(p.condition::text, 201)
         else coalesce(p.user_id::text, '') end as target,
    pg_catalog.left(p.title::text, 201) as title, pg_catalog.left(p.error_code::text, 65) as error_code,
    pg_catalog.left(p.last_error::text, 2001) as last_error,
    coalesce(p.retry_count, 0)::integer as retry_count,
    extract(epoch from p.created_at)::float8 as created_at, extract(epoch from p.updated_at)::float8 as updated_at,
    case when p.status::text in ('pending', 'processing', 'failed')
         then extract(epoch from p.next_attempt_at)::float8 end as due_at
