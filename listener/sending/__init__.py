"""The way of a push, from the claimed row to the settled one."""
