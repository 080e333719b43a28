drop function public.requeue_pushes(uuid[], text, timestamptz, integer);
drop function public.cancel_push(uuid);
drop function public.enqueue_push(uuid, text, text, text, text, text, jsonb, text, text, text, jsonb, text, text,
                                  timestamptz, timestamptz);
drop function public.unregister_device(text);
drop function public.register_device(text, text, uuid);
drop function public.flush_telemetry(jsonb[]);
drop function push_listener.store_telemetry(jsonb[], uuid, uuid);
drop function push_listener.telemetry_problem(jsonb, uuid);
drop function push_listener.to_time(text);
drop function public.record_delivery_receipt(uuid, text, text, jsonb);
drop function public.mark_push_failed(uuid, text);
drop function public.mark_push_sent(uuid);
drop function push_listener.settled_before(uuid, text[]);
drop function public.fetch_pending_pushes(integer);
drop function push_listener.caller_is_service();
drop function push_listener.caller_id();
drop function push_listener.caller();
drop function push_listener.allow(regprocedure, text[]);
