"""Waiting for events: the coordinator's side, the hosts in which users' listeners run, mailboxes."""
