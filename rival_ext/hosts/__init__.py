"""The hosts: what the method asks of each (`rival_ext.method.host.Host`). Only these files import a host."""
