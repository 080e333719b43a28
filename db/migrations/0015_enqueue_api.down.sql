drop function public.requeue_pushes(uuid[], text, timestamptz, integer);
drop function public.cancel_push(uuid);
drop function public.enqueue_push(uuid, text, text, text, text, text, jsonb, text, text, text, jsonb, text, text,
                                  timestamptz, timestamptz);
