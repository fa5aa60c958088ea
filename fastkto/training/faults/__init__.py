"""What a run does on a torn checkpoint, a number that is not finite, SIGTERM, or too little memory."""
