-- One push to each user who wants news: one statement, whether there are a hundred users or a hundred thousand.
--
-- Priority "normal" is the default, so that pushes of high priority overtake these. With the idempotency keys the
-- statement may be repeated, also after a lost answer: who has the push already gets no second one.
-- To everybody alike a topic is cheaper, one row for all: insert into push_notifications (topic, title) ...
-- Run it as the owner of the tables or as service_role, which on Supabase's REST interface is limited to a few seconds:
-- so over a connection to Postgres.

insert into public.push_notifications (user_id, title, body, data, channel, expires_at, idempotency_key)
  select p.id, 'The summer sale begins', 'Everything at half price until Sunday',
         '{"screen": "sale"}', 'news', now() + interval '12 hours', 'summer-sale-' || p.id
    from public.profiles p
    where p.wants_news
  on conflict (idempotency_key) where idempotency_key is not null do nothing;
