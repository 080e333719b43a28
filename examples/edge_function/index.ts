// A Supabase Edge Function: the till of a shop posts orders that are ready, and their customers get pushes.
//
//   supabase functions new orders-ready           and copy this file to supabase/functions/orders-ready/index.ts
//   supabase secrets set TILL_SECRET=...          what the till sends in the header x-till-secret
//   supabase functions deploy orders-ready --no-verify-jwt
//
// It needs no library. The till may repeat a request for as long as it gets a 5xx or no answer: with the idempotency keys
// no customer gets a push twice. A 4xx is for good, and says why.

import { timingSafeEqual } from "node:crypto";

interface Order {
  id: number;
  customer: string;
}

interface Enqueued {
  place: number;
  id: string | null;
  is_new: boolean;
  error: string | null;
}

class Refused extends Error {
  constructor(readonly status: number, message: string) {
    super(message);
  }
}

function needed(name: string): string {
  const value = Deno.env.get(name);
  if (!value) throw new Error(`${name} is not set`);
  return value;
}

// Supabase sets SUPABASE_SECRET_KEYS, a JSON object of keys by their names; older projects have one key, a JWT.
function secretKey(): string {
  const keys = Deno.env.get("SUPABASE_SECRET_KEYS");
  return keys ? JSON.parse(keys)["default"] : needed("SUPABASE_SERVICE_ROLE_KEY");
}

const url = needed("SUPABASE_URL");
const key = secretKey();
const tillSecret = needed("TILL_SECRET");

// The gateway's statuses that come again with the same request: 409 is a constraint of the database, 413 too much.
const FOR_GOOD: Record<number, number> = { 400: 400, 409: 422, 413: 413 };

async function rpc<T>(name: string, args: Record<string, unknown>): Promise<T> {
  const headers: Record<string, string> = { apikey: key, "Content-Type": "application/json" };
  // A key of the newer kind is no JWT: the gateway refuses it as Authorization.
  if (key.startsWith("eyJ")) headers.Authorization = `Bearer ${key}`;
  const answer = await fetch(`${url}/rest/v1/rpc/${name}`, {
    method: "POST",
    headers,
    body: JSON.stringify(args),
  }).catch(() => {
    throw new Refused(503, "the database cannot be reached");
  });
  if (!answer.ok) {
    const { message } = await answer.json().catch(() => ({ message: "no JSON" }));
    throw new Refused(FOR_GOOD[answer.status] ?? 503, message);
  }
  return await answer.json();
}

const text = (order: Order) => ({
  user_id: order.customer,
  title: "Your order is ready",
  body: `Order ${order.id}`,
  data: { order: String(order.id) },
  priority: "high",
  idempotency_key: `order-${order.id}-ready`,
});

// One push: enqueue_push, whose arguments begin with p_.
async function one(order: Order): Promise<Response> {
  const args = Object.fromEntries(Object.entries(text(order)).map(([name, value]) => [`p_${name}`, value]));
  return Response.json({ pushes: [await rpc<string>("enqueue_push", args)], refused: [] });
}

// Up to 10,000 in one call: enqueue_pushes accepts or refuses each by itself.
async function many(orders: Order[]): Promise<Response> {
  const rows = await rpc<Enqueued[]>("enqueue_pushes", { p_pushes: orders.map(text) });
  return Response.json({
    pushes: rows.filter((row) => row.error === null).map((row) => row.id),
    refused: rows.filter((row) => row.error !== null).map((row) => ({ order: orders[row.place].id, error: row.error })),
  });
}

/** The orders of a request. Each key of idempotency needs a number, so one order without it refuses them all. */
async function ordersOf(request: Request): Promise<Order[]> {
  const body: unknown = await request.json().catch(() => {
    throw new Refused(400, "the body is no JSON");
  });
  if (!Array.isArray(body)) throw new Refused(400, "the body is no list of orders");
  return body.map((each, place) => {
    const { id, customer } = each ?? {};
    if (!Number.isSafeInteger(id)) throw new Refused(400, `order ${place} of the list: id is no whole number`);
    if (typeof customer !== "string") throw new Refused(400, `order ${place} of the list: customer is no text`);
    return { id, customer };
  });
}

function isFromTheTill(request: Request): boolean {
  const encoder = new TextEncoder();
  const given = encoder.encode(request.headers.get("x-till-secret") ?? "");
  const wanted = encoder.encode(tillSecret);
  return given.length === wanted.length && timingSafeEqual(given, wanted);
}

Deno.serve(async (request) => {
  if (!isFromTheTill(request)) return Response.json({ error: "who are you?" }, { status: 401 });
  try {
    const orders = await ordersOf(request);
    return await (orders.length === 1 ? one(orders[0]) : many(orders));
  } catch (error) {
    if (!(error instanceof Refused)) throw error; // 500: the till tries again
    return Response.json({ error: error.message }, { status: error.status });
  }
});
