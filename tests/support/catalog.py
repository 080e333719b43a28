"""What a database is made of, as lines of text that can be compared."""

from __future__ import annotations

import psycopg


def _grants(acl: str) -> str:
    """SQL for the grants in an ACL, spelt out and in order."""
    grant = "format('%%s: %%s %%s', g.grantee::regrole, g.privilege_type, g.is_grantable)"
    return f"(select array_agg({grant} order by {grant}) from aclexplode({acl}) as g)"


_SCHEMA_GRANTS = _grants("coalesce(n.nspacl, acldefault('n', n.nspowner))")
_RELATION_GRANTS = _grants(
    """coalesce(c.relacl, acldefault(case c.relkind when 'S' then 's' else 'r' end::"char", c.relowner))"""
)
_COLUMN_GRANTS = _grants("a.attacl")
_FUNCTION_GRANTS = _grants("coalesce(p.proacl, acldefault('f', p.proowner))")

_QUERIES = (
    # Schemas
    f"""
    select 'schema', n.nspname, n.nspowner::regrole, {_SCHEMA_GRANTS}
      from pg_namespace n where n.nspname = any (%(schemas)s)
    """,
    # Tables, views, sequences
    f"""
    select 'relation', c.oid::regclass, c.relkind, c.relowner::regrole, c.relpersistence, c.relrowsecurity,
           c.relforcerowsecurity, (select array_agg(o order by o) from unnest(c.reloptions) o),
           {_RELATION_GRANTS},
           obj_description(c.oid, 'pg_class'), case when c.relkind = 'v' then pg_get_viewdef(c.oid) end
      from pg_class c
      where c.relnamespace = any (%(schemas)s::regnamespace[]) and c.relkind in ('r', 'p', 'v', 'S', 'm')
    """,
    f"""
    select 'column', c.oid::regclass, a.attname, row_number() over (partition by c.oid order by a.attnum),
           format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated, a.attstorage,
           a.attcollation::regcollation, pg_get_expr(d.adbin, d.adrelid), {_COLUMN_GRANTS},
           col_description(c.oid, a.attnum)
      from pg_class c
      join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
      left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
      where c.relnamespace = any (%(schemas)s::regnamespace[]) and c.relkind in ('r', 'p', 'v')
    """,
    """
    select 'constraint', k.conrelid::regclass, k.conname, pg_get_constraintdef(k.oid), k.convalidated
      from pg_constraint k where k.connamespace = any (%(schemas)s::regnamespace[]) and k.conrelid <> 0
    """,
    """
    select 'index', i.indexrelid::regclass, pg_get_indexdef(i.indexrelid), i.indisvalid, i.indisready
      from pg_index i join pg_class c on c.oid = i.indexrelid
      where c.relnamespace = any (%(schemas)s::regnamespace[])
    """,
    """
    select 'trigger', t.tgname, pg_get_triggerdef(t.oid), t.tgenabled, obj_description(t.oid, 'pg_trigger')
      from pg_trigger t join pg_class c on c.oid = t.tgrelid
      where c.relnamespace = any (%(schemas)s::regnamespace[]) and not t.tgisinternal
    """,
    """
    select 'policy', p.polrelid::regclass, p.polname, p.polcmd, p.polpermissive, p.polroles::regrole[],
           pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid)
      from pg_policy p join pg_class c on c.oid = p.polrelid
      where c.relnamespace = any (%(schemas)s::regnamespace[])
    """,
    f"""
    select 'function', p.oid::regprocedure, p.proowner::regrole, pg_get_functiondef(p.oid),
           {_FUNCTION_GRANTS}, obj_description(p.oid, 'pg_proc')
      from pg_proc p where p.pronamespace = any (%(schemas)s::regnamespace[]) and p.prokind in ('f', 'p')
    """,
    """
    select 'type', t.oid::regtype, t.typtype from pg_type t
      where t.typnamespace = any (%(schemas)s::regnamespace[]) and t.typtype in ('e', 'd')
    """,
)


def describe(dsn: str, *schemas: str) -> list[str]:
    """Every object in these schemas (by default ``public``), one a line, sorted: with its grants and comments."""
    lines: list[str] = []
    with psycopg.connect(dsn) as connection:
        there = connection.execute(
            "select nspname from pg_namespace where nspname = any (%s)", (list(schemas or ["public"]),)
        ).fetchall()
        for query in _QUERIES:
            rows = connection.execute(query.encode(), {"schemas": [name for (name,) in there]})
            lines += (" | ".join(str(value) for value in row) for row in rows)
    return sorted(lines)
