"""What old names stand for where fulgur has nothing of its own: functions, types and classes, one topic a file."""
