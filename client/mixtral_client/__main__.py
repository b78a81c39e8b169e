from mixtral_client.cli import main

main(prog_name="mixtral")
