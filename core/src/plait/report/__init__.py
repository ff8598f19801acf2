def write_report(directory): pass
