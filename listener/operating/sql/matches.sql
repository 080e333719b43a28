-- Whether the push "p" matches a filter. The index of what is given up also has failed pushes that will be tried again;
-- there they do not match.
p.status::text = any(%(statuses)s::text[])
    and (%(user)s::uuid is null or p.user_id = %(user)s::uuid)
    and (%(code)s::text is null or p.error_code::text = %(code)s::text)
    and p.updated_at between %(since)s::timestamptz and %(until)s::timestamptz
    and (%(kind)s::text is null
         or case when p.device_token is not null then 'token' when p.fid is not null then 'fid'
                 when p.topic is not null then 'topic'
                 when p.condition is not null then 'condition' when p.user_id is not null then 'user'
                 else '' end = %(kind)s::text)
    and (not %(is_in_time)s::boolean or p.expires_at is null or p.expires_at > pg_catalog.now())
    and (not %(is_given_up)s::boolean or p.status::text <> 'failed' or p.next_attempt_at is null)
