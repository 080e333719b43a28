-- revision 2
create or replace function push_listener.operator_reveal(p_push_id uuid, p_who text)
  returns table (device_token text, title text, body text, data jsonb, image text, options jsonb, tokens text[])
  language plpgsql security definer rows 1 set search_path = pg_catalog, pg_temp
as $$
begin
  perform push_listener.check_action(p_who, null, null, array[p_push_id]);
  return query
    select coalesce(p.device_token, p.fid)::text, p.title::text, p.body::text, p.data::jsonb, p.image::text, p.options::jsonb,
           array(select distinct l.device_token::text
                   from public.push_delivery_logs l
                   where l.push_id = p.id and l.device_token is not null
                   order by 1
                   limit 1000)
      from public.push_notifications p
      where p.id = p_push_id;
  if found then
    insert into push_listener.actions (who, what, affected, ids) values (p_who, 'reveal', 1, array[p_push_id]);
  end if;
end
$$;
revoke all on function push_listener.operator_reveal from public;
comment on function push_listener.operator_reveal is
  'What a push says, its registration token or fid, and the tokens in its log (no more than 1000); records that they were looked at. No row if there is no such push.';
