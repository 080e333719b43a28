-- The tables of a small shop, for the examples beside this file.

create table public.couriers (
  id uuid primary key,
  is_free boolean not null default true
);

create table public.orders (
  id bigint generated always as identity primary key,
  customer_id uuid not null,
  courier_id uuid references public.couriers,
  status text not null default 'cooking' check (status in ('cooking', 'ready', 'on the way', 'delivered'))
);
create index on public.orders (courier_id);

-- What the Data API shows to users. Neither table has anything for them yet: see order_status.sql.
alter table public.couriers enable row level security;
alter table public.orders enable row level security;
