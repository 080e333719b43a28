drop function if exists public.requeue_pushes(uuid[], text, timestamptz, integer, text, uuid, timestamptz);
drop function if exists public.cancel_push(uuid);
drop function if exists public.enqueue_push(uuid, text, text, text, text, text, jsonb, text, text, text, jsonb, text, text,
                                  timestamptz, timestamptz, text);
